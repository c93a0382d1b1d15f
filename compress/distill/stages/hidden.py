"""The student's own residual stream learns to follow the teacher's, block after block.

Unlike in `align`, every block sees what the student made of the text so far, and so learns to
mend what the blocks before it got wrong.
"""

import torch

from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.stages.align import relative_error


class Hidden:
    """See the module. The loss is the mean of `relative_error` right behind the new blocks."""

    def __init__(self, pair: Pair, settings: DistillSettings) -> None:
        assert pair.teacher is not None
        self.parameters = pair.parameters(settings.train)
        self._pair, self._teacher = pair, pair.teacher

    def learn(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """See `Stage.learn`."""
        loss = self._loss(ids, seq_idx)
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def measure(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """See `Stage.measure`."""
        return float(self._loss(ids, seq_idx))

    def _loss(self, ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
        options = {"seq_idx": seq_idx, "use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            wanted = self._teacher.model(ids, **options).hidden_states
        got = self._pair.student.model(ids, **options).hidden_states
        errors = [  # the first of the streams is the embeddings
            relative_error(got[index + 1], wanted[index + 1]) for index in self._pair.swapped
        ]
        return torch.stack(errors).mean()
