"""Each swapped block learns what its attention block would have given for the same input.

As in MOHAWK's second stage (Bick et al. 2024, arXiv 2408.10189, section 3.2), blocks do not know
of each other. One run of the teacher serves them all, and only one block's graph is alive at a
time, for a few rows: as soon as a teacher block has given its output, its successor takes its
gradient.
"""

from dataclasses import replace
from typing import Any

import torch

from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.settings import DistillSettings

_TOKENS_AT_ONCE = 1024


class Align:
    """See the module. The loss is the mean over blocks of `relative_error`."""

    def __init__(self, pair: Pair, settings: DistillSettings) -> None:
        del settings
        assert pair.teacher is not None
        self.parameters = pair.mixers()
        self._pair, self._teacher = pair, pair.teacher
        self._total = 0.0
        self._learns = False

    def learn(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """See `Stage.learn`."""
        return self._run(ids, seq_idx, learns=True)

    def measure(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """See `Stage.measure`."""
        return self._run(ids, seq_idx, learns=False)

    @torch.no_grad()
    def _run(self, ids: torch.Tensor, seq_idx: torch.Tensor, *, learns: bool) -> float:
        self._total, self._learns = 0.0, learns
        hooks = [
            self._teacher.model.blocks[index].mixer.register_forward_hook(self._compare(index))
            for index in self._pair.swapped
        ]
        try:
            self._teacher.model(ids, seq_idx=seq_idx, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return self._total / len(self._pair.swapped)

    def _compare(self, index: int) -> Any:
        mixer = self._pair.student.model.blocks[index].mixer

        def compare(_: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            x, context = inputs
            for rows in torch.arange(len(x)).split(max(1, _TOKENS_AT_ONCE // x.shape[1])):
                part = replace(context, seq_idx=context.seq_idx[rows])
                with torch.set_grad_enabled(self._learns):
                    loss = relative_error(mixer(x[rows], part), output[rows])
                    loss = loss * (len(rows) / len(x))
                    if self._learns:
                        (loss / len(self._pair.swapped)).backward()
                self._total += float(loss.detach())

        return compare


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the error's power as a share of what is wanted, ``(rows, …)``, mean over rows."""
    got, wanted = got.flatten(1).float(), wanted.flatten(1).float()
    power = wanted.square().sum(1).clamp(min=1e-12)
    return ((got - wanted).square().sum(1) / power).mean()
