"""Train each new block to compute the output of the attention block that it replaced.

This is the second stage of MOHAWK (Bick et al. 2024, arXiv 2408.10189, section 3.2). A new block
gets the input of the teacher's attention block, so the blocks do not depend on each other. One
forward pass of the teacher serves all of them. Gradients are computed inside that pass, block by
block and for a few sequences at a time, so only one such graph is in memory.
"""

from dataclasses import replace
from typing import Any

import torch
from typing_extensions import override

from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.stages.base import Stage
from hybridize.compress.distill.teacher_cache import TeacherCache

_TOKENS_PER_GRAPH = 1024


class Align(Stage):
    """The stage ``align``. The loss is the mean of `relative_error` over the new blocks."""

    def __init__(
        self, pair: Pair, config: DistillConfig, teacher_cache: TeacherCache | None = None
    ) -> None:
        super().__init__(pair, config, teacher_cache)
        self.parameters = pair.mixers()
        self._total = 0.0
        self._training = False

    @override
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return self._run(ids, seq_idx, training=True)

    @override
    def validation_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return self._run(ids, seq_idx, training=False)

    @torch.no_grad()
    def _run(self, ids: torch.Tensor, seq_idx: torch.Tensor, *, training: bool) -> float:
        self._total, self._training = 0.0, training
        hooks = [
            self.teacher.model.blocks[index].mixer.register_forward_hook(self._hook(index))
            for index in self.pair.swapped
        ]
        try:
            self.teacher.model(ids, seq_idx=seq_idx, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return self._total / len(self.pair.swapped)

    def _hook(self, block_idx: int) -> Any:
        """Return a hook for an attention block that trains the new block on its input and output.

        It adds the block's loss to ``self._total``.
        """
        mixer = self.pair.student.model.blocks[block_idx].mixer

        def hook(_: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            x, context = inputs
            for part in torch.arange(len(x)).split(max(1, _TOKENS_PER_GRAPH // x.shape[1])):
                part_context = replace(context, seq_idx=context.seq_idx[part])
                with torch.set_grad_enabled(self._training):
                    loss = relative_error(mixer(x[part], part_context), output[part])
                    loss = loss * (len(part) / len(x))
                    if self._training:
                        (loss / len(self.pair.swapped)).backward()
                self._total += float(loss.detach())

        return hook


def relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error divided by the target's squared norm, mean over sequences.

    Args:
        output, target: ``(sequences, …)``.
    """
    output, target = output.flatten(1).float(), target.flatten(1).float()
    power = target.square().sum(1).clamp(min=1e-12)
    return ((output - target).square().sum(1) / power).mean()
