"""Train the student's hidden states to equal the teacher's after each new block.

Unlike in `align`, a block gets the student's own hidden states as input. It therefore also learns
to correct the errors of earlier blocks.
"""

import torch
from typing_extensions import override

from hybridize.compress.distill.stages.align import relative_error
from hybridize.compress.distill.stages.base import Stage


class Hidden(Stage):
    """The stage ``hidden``. The loss is the mean of `relative_error` after the new blocks."""

    @override
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        loss = self._loss(ids, seq_idx)
        loss.backward()
        return float(loss.detach())

    @override
    @torch.no_grad()
    def validation_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return float(self._loss(ids, seq_idx))

    def _loss(self, ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
        options = {"seq_idx": seq_idx, "use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            targets = self.teacher.model(ids, **options).hidden_states
        outputs = self.pair.student.model(ids, **options).hidden_states
        errors = [  # index 0 has the embeddings, index i + 1 the output of block i
            relative_error(outputs[index + 1], targets[index + 1]) for index in self.pair.swapped
        ]
        return torch.stack(errors).mean()
