"""The tensors of a pruned model, sliced out of the original's one at a time."""

import torch
from typing_extensions import override

from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import WHOLE_MODEL
from hybridize.compress.prune.scores import Scores
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.model_spec import ModelSpec


class PrunedTensors(Tensors):
    """The tensors of a pruned model.

    An RMSNorm divides by the root mean square of its input. When channels of the input are removed,
    that mean changes. The norm's weight is rescaled, so that the remaining channels keep their
    size. If all removed channels were zero, the outputs of the model do not change.

    Args:
        source: the model's tensors.
        config: its configuration.
        architecture: the sizes of the pruned model.
        scores: the importance of all units, which decides what is kept.

    Attributes:
        config: the configuration of the pruned model.
    """

    def __init__(
        self, source: Tensors, config: ModelSpec, architecture: Architecture, scores: Scores
    ) -> None:
        self._source = source
        self._slices: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._norm_factors: dict[str, torch.Tensor] = {}
        kept_blocks = [i for i in range(len(config.blocks)) if i not in architecture.dropped]
        self._old_block_idx = dict(enumerate(kept_blocks))
        self.config = architecture.apply(config)
        current = config
        for name, axis in AXES.items():
            for block_idx, count in architecture.counts(axis, current).items():
                kept = axis.keep(scores.units[name][block_idx], count)
                slices = axis.slices(axis.sizes_in(current, block_idx), kept)
                prefix = "" if block_idx == WHOLE_MODEL else f"model.blocks.{block_idx}.mixer."
                for parameter, one_slice in slices.items():
                    self._slices.setdefault(prefix + parameter, []).append(one_slice)
            current = architecture.resize(axis, current)
        self._rescale_norms(config, current, scores)

    @override
    def get(self, name: str) -> torch.Tensor:
        name = self._old_name(name)
        tensor = self._source.get(name)
        for dim, index in self._slices.get(name, ()):
            tensor = tensor.index_select(dim, index)
        factor = self._norm_factors.get(name)
        return tensor if factor is None else (tensor.float() * factor).to(tensor.dtype)

    @override
    def dtype(self, name: str) -> str:
        return self._source.dtype(self._old_name(name))

    def _old_name(self, name: str) -> str:
        parts = name.split(".")
        if parts[1] == "blocks":
            parts[2] = str(self._old_block_idx[int(parts[2])])
        return ".".join(parts)

    def _rescale_norms(self, before: ModelSpec, after: ModelSpec, scores: Scores) -> None:
        for block_idx, power in enumerate(scores.stream):
            name = f"model.blocks.{block_idx}.norm.weight"
            name = name if block_idx < len(before.blocks) else "model.norm.weight"
            if name in self._slices:
                self._norm_factors[name] = (self._kept(name, power).mean() / power.mean()).sqrt()
        for block_idx, power in scores.gated.items():
            name = f"model.blocks.{block_idx}.mixer.norm.weight"
            if name not in self._slices:
                continue
            old, new = before.blocks[block_idx], after.blocks[block_idx]
            if isinstance(old, MambaSizes) and isinstance(new, MambaSizes):
                self._norm_factors[name] = self._gated_norm_factor(name, power, old, new)

    def _gated_norm_factor(
        self, name: str, power: torch.Tensor, old: MambaSizes, new: MambaSizes
    ) -> torch.Tensor:
        """Return the factor of a Mamba-2 block's norm, which has one mean per group."""
        group_width = old.d_inner // old.n_groups
        mean_before = power.view(old.n_groups, -1).mean(-1).repeat_interleave(group_width)
        kept = self._kept(name, power).view(new.n_groups, -1)
        mean_after = kept.mean(-1, keepdim=True).expand_as(kept).flatten()
        ratio = mean_after / self._kept(name, mean_before)
        return ratio.nan_to_num(1.0).sqrt()

    def _kept(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return a vector sliced like the parameter ``name``."""
        for _, index in self._slices[name]:
            values = values[index]
        return values
