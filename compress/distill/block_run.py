"""Run a model block by block, so that a stage computes only the blocks that it needs."""

from collections.abc import Iterator
from typing import Any

import torch

from hybridize.modeling.cache.segment import SegmentCache
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.model import HybridForCausalLM


class BlockRun:
    """A forward pass that advances when it is asked to.

    Args:
        model: the model.
        ids, seq_idx: ``(sequences, length)``, as `PackedDataset.sequences` returns them.
        cache: carries the state from the previous segment to the next one; None without segments.
        start: another model's run of the same tokens. This run continues from its hidden states,
            behind the same number of blocks. None starts with the embeddings.

    Attributes:
        x: ``(sequences, length, hidden)``, the input of the next block.
        context: the second argument of every block.
        next_block: the index of the next block.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        ids: torch.Tensor,
        seq_idx: torch.Tensor,
        cache: SegmentCache | None = None,
        start: "BlockRun | None" = None,
    ) -> None:
        self._model = model.model
        self.next_block: int = 0 if start is None else start.next_block
        if start is None:
            self.x = self._model.embed_tokens(ids)
            if model.config.embedding_multiplier != 1.0:
                self.x = self.x * model.config.embedding_multiplier
        else:
            self.x = start.x
        self.context: BlockContext = self._model.block_context(self.x, seq_idx, cache)

    def advance(self, stop: int) -> torch.Tensor:
        """Run all blocks before the index ``stop``; return the output of the last one."""
        for block in self._model.blocks[self.next_block : stop]:
            self.x = block(self.x, self.context)
        self.next_block = max(self.next_block, stop)
        return self.x

    def finish(self) -> torch.Tensor:
        """Run all blocks and the last norm; return the input of the head."""
        hidden: torch.Tensor = self._model.norm(self.advance(len(self._model.blocks)))
        return hidden


def start_both(
    teacher: HybridForCausalLM,
    student: HybridForCausalLM,
    common: int,
    ids: torch.Tensor,
    seq_idx: torch.Tensor,
    caches: tuple[SegmentCache | None, SegmentCache | None] = (None, None),
) -> tuple[BlockRun, BlockRun]:
    """Return a run of each model, behind the first blocks that both have in common.

    These blocks run once, without gradients.

    Args:
        teacher, student: the models.
        common: the number of first blocks in common, see `Pair.common_blocks`.
        ids, seq_idx: ``(sequences, length)``, as `PackedDataset.sequences` returns them.
        caches: the teacher's and the student's.
    """
    with torch.no_grad():
        teacher_run = BlockRun(teacher, ids, seq_idx, caches[0])
        teacher_run.advance(common)
    start = teacher_run if common else None
    return teacher_run, BlockRun(student, ids, seq_idx, caches[1], start)


@torch.no_grad()
def run_mixers(
    model: HybridForCausalLM, indices: tuple[int, ...], ids: torch.Tensor, seq_idx: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, BlockContext]]:
    """Yield the inputs and outputs of some mixers, without gradients. Later blocks do not run.

    Args:
        model: the model.
        indices: the indices of the mixers' blocks, in ascending order.
        ids, seq_idx: ``(sequences, length)``, as `PackedDataset.sequences` returns them.

    Yields:
        The index of the block, the mixer's input and its output, ``(sequences, length, hidden)``
        each, and the context of the pass.
    """
    run = BlockRun(model, ids, seq_idx)
    for index in indices:
        run.advance(index)
        calls: list[tuple[torch.Tensor, torch.Tensor]] = []

        def record(
            _: Any,
            inputs: tuple[Any, ...],
            output: torch.Tensor,
            calls: list[tuple[torch.Tensor, torch.Tensor]] = calls,
        ) -> None:
            calls.append((inputs[0], output))

        hook = model.model.blocks[index].mixer.register_forward_hook(record)
        try:
            run.advance(index + 1)
        finally:
            hook.remove()
        yield index, *calls[0], run.context
