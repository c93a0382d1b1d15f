"""The cut itself: a narrower, shallower model's tensors out of a larger one's, one at a time."""

import torch

from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.scores import Scores
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import MambaSizes


class CutTensors:
    """The tensors of a model's smaller version.

    A norm divides by the root mean square of what is left, and not of what was there: its weight
    makes up for that, so that what stays keeps its size. Where all that left was zero, nothing
    changes at all.

    Args:
        source: the model's tensors.
        config: its configuration.
        architecture: what becomes of it.
        scores: what stays and what goes.

    Attributes:
        config: of the smaller model.
    """

    def __init__(
        self, source: Tensors, config: HybridConfig, architecture: Architecture, scores: Scores
    ) -> None:
        self._source = source
        self._steps: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._factors: dict[str, torch.Tensor] = {}
        kept_places = [i for i in range(len(config.blocks)) if i not in architecture.dropped]
        self._old = dict(enumerate(kept_places))
        self.config = architecture.config(config)
        current = config
        for name, axis in AXES.items():
            for place, count in architecture.counts(axis, current).items():
                kept = axis.keep(scores.units[name][place], count)
                prefix = "" if place < 0 else f"model.blocks.{place}.mixer."
                for parameter, step in axis.slices(current, place, kept).items():
                    self._steps.setdefault(prefix + parameter, []).append(step)
            current = architecture.resized(axis, current)
        self._correct_norms(config, current, scores)

    def get(self, name: str) -> torch.Tensor:
        """See `Tensors.get`."""
        name = self._old_name(name)
        tensor = self._source.get(name)
        for dim, index in self._steps.get(name, ()):
            tensor = tensor.index_select(dim, index)
        factor = self._factors.get(name)
        return tensor if factor is None else (tensor.float() * factor).to(tensor.dtype)

    def dtype(self, name: str) -> torch.dtype:
        """See `Tensors.dtype`."""
        return self._source.dtype(self._old_name(name))

    def _old_name(self, name: str) -> str:
        parts = name.split(".")
        if parts[1] == "blocks":
            parts[2] = str(self._old[int(parts[2])])
        return ".".join(parts)

    def _correct_norms(self, before: HybridConfig, after: HybridConfig, scores: Scores) -> None:
        for place, power in enumerate(scores.stream):
            name = f"model.blocks.{place}.norm.weight"
            name = name if place < len(before.blocks) else "model.norm.weight"
            if name in self._steps:
                self._factors[name] = (self._left(name, power).mean() / power.mean()).sqrt()
        for place, power in scores.gated.items():
            name = f"model.blocks.{place}.mixer.norm.weight"
            if name not in self._steps:
                continue
            old, new = before.blocks[place], after.blocks[place]
            assert isinstance(old, MambaSizes)
            assert isinstance(new, MambaSizes)
            usual = (
                power.view(old.n_groups, -1).mean(-1).repeat_interleave(old.d_inner // old.n_groups)
            )
            left = self._left(name, power).view(new.n_groups, -1)
            ratio = left.mean(-1, keepdim=True).expand_as(left).flatten() / self._left(name, usual)
            self._factors[name] = ratio.nan_to_num(1.0).sqrt()

    def _left(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return what is left of a vector that is cut as a parameter is."""
        for _, index in self._steps[name]:
            values = values[index]
        return values
