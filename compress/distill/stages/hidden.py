"""Train the student's hidden states to equal the teacher's after each new block.

Unlike in `align`, a block gets the student's own hidden states as input. It therefore also learns
to correct the errors of earlier blocks.
"""

import torch
from typing_extensions import override

from hybridize.compress.distill.block_run import start_both
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.stages.align import relative_error
from hybridize.compress.distill.stages.base import Stage
from hybridize.compress.distill.teacher_caches import TeacherCaches


class Hidden(Stage):
    """The stage ``hidden``. The loss is the mean of `relative_error` after the new blocks.

    First blocks that both models have in common run once, and blocks after the last new one do not
    run.
    """

    def __init__(
        self, pair: Pair, config: DistillConfig, caches: TeacherCaches | None = None
    ) -> None:
        super().__init__(pair, config, caches)
        self._common = pair.common_blocks()

    @override
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        loss = self._loss(ids, seq_idx)
        self.backward(loss)
        return float(loss.detach())

    @override
    @torch.no_grad()
    def validation_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return float(self._loss(ids, seq_idx))

    def _loss(self, ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
        teacher, student = start_both(self.teacher, self.pair.student, self._common, ids, seq_idx)
        with torch.no_grad():
            targets = [teacher.advance(index + 1) for index in self.pair.swapped]
        errors = [
            relative_error(student.advance(index + 1), target)
            for index, target in zip(self.pair.swapped, targets, strict=True)
        ]
        return torch.stack(errors).mean()
