"""Train each new block to compute the output of the attention block that it replaced.

This is the second stage of MOHAWK (Bick et al. 2024, arXiv 2408.10189, section 3.2). A new block
gets the input of the teacher's attention block, so the blocks do not depend on each other. One
forward pass of the teacher serves all of them, and ends at the last one. Gradients are computed
during that pass, block by block and for a few sequences at a time, so only one such graph is in
memory. Sequences whose inputs and outputs are stored (`BlockCache`) need no forward pass.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from typing_extensions import override

from hybridize.compress.distill.block_run import run_mixers
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.stages.base import Stage
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.modeling.layers.context import BlockContext

_TOKENS_PER_GRAPH = 1024


class Align(Stage):
    """The stage ``align``. The loss is the mean of `relative_error` over the new blocks."""

    def __init__(
        self, pair: Pair, config: DistillConfig, caches: TeacherCaches | None = None
    ) -> None:
        super().__init__(pair, config, caches)
        self.parameters = pair.mixers()
        self._dtype = pair.student.model.embed_tokens.weight.dtype  # of the hidden states

    @override
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return self._run(ids, seq_idx, indices, training=True)

    @override
    def validation_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return self._run(ids, seq_idx, indices, training=False)

    def _run(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor, *, training: bool
    ) -> float:
        total = 0.0
        for index, x, target, context in self._attention(ids, seq_idx, indices):
            mixer = self.pair.student.model.blocks[index].mixer
            for part in torch.arange(len(x)).split(max(1, _TOKENS_PER_GRAPH // x.shape[1])):
                assert context.seq_idx is not None
                part_context = replace(context, seq_idx=context.seq_idx[part])
                with torch.set_grad_enabled(training):
                    loss = relative_error(mixer(x[part], part_context), target[part])
                    loss = loss * (len(part) / len(ids))
                    if training:
                        self.backward(loss / len(self.pair.swapped))
                total += float(loss.detach())
        return total / len(self.pair.swapped)

    def _attention(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, BlockContext]]:
        """Yield the inputs and outputs of attention blocks, for all sequences of a batch.

        Each block comes up to twice, with the stored sequences and with the others. The tuples are
        those of `run_mixers`.
        """
        cache = self.caches.blocks
        is_stored = torch.tensor([cache is not None and int(i) in cache for i in indices])
        if cache is not None and is_stored.any():
            context = None
            for index, x, y in cache.read(indices[is_stored], ids.device):
                x, y = x.to(self._dtype), y.to(self._dtype)
                context = context or self.pair.student.model.block_context(x, seq_idx[is_stored])
                yield index, x, y, context
        if not is_stored.all():
            rest = (~is_stored).to(ids.device)
            yield from run_mixers(self.teacher, self.pair.swapped, ids[rest], seq_idx[rest])


def relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error divided by the target's squared norm, mean over sequences.

    Args:
        output, target: ``(sequences, …)``.
    """
    output, target = output.flatten(1).float(), target.flatten(1).float()
    power = target.square().sum(1).clamp(min=1e-12)
    return ((output - target).square().sum(1) / power).mean()
