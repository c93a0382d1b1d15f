"""The sizes of a smaller model, as numbers of units and removed blocks."""

from dataclasses import dataclass, field
from typing import Any

from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import Axis
from hybridize.modeling.model_spec import ModelSpec


@dataclass(frozen=True)
class Architecture:
    """The sizes of a smaller model.

    Attributes:
        widths: by axis name, the number of units that each block keeps. Axes that are not listed
            keep all units.
        dropped: the indices of the blocks that are removed.
        per_block: by axis name and block index, the number of units that this block keeps. An axis
            that is listed here is not read from ``widths``.
    """

    widths: dict[str, int] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    per_block: dict[str, dict[int, int]] = field(default_factory=dict)

    def counts(self, axis: Axis[Any], config: ModelSpec) -> dict[int, int]:
        """Return the number of units that blocks keep, by block index; empty if nothing changes.

        Args:
            axis: the axis.
            config: the model after all axes that come before this one in `AXES`.
        """
        if axis.name in self.per_block:
            return self.per_block[axis.name]
        count = self.widths.get(axis.name)
        blocks = axis.blocks(config)
        if count is None or not blocks or count == axis.count_in(config):
            return {}
        return dict.fromkeys(blocks, count)

    def resize(self, axis: Axis[Any], config: ModelSpec) -> ModelSpec:
        """Return the model after this axis too; see `counts`."""
        counts = self.counts(axis, config)
        return axis.resize_in(config, counts) if counts else config

    def apply(self, source: ModelSpec) -> ModelSpec:
        """Return the configuration of the smaller model."""
        config = source
        for axis in AXES.values():
            config = self.resize(axis, config)
        if self.dropped:
            blocks = [b for i, b in enumerate(config.blocks) if i not in self.dropped]
            config = config.replace_blocks(blocks)
        return config

    def describe(self, source: ModelSpec) -> str:
        """Return the changes as text, such as ``MLP width 256 → 192, blocks 16 → 14``."""
        changes = []
        for name, axis in AXES.items():
            if name in self.per_block:
                counts = [n for i, n in self.per_block[name].items() if i not in self.dropped]
                before = axis.count_in(source)
                changes.append(f"{axis.unit} {before} → {min(counts)} to {max(counts)}")
            elif name in self.widths and self.widths[name] != axis.count_in(source):
                changes.append(f"{axis.unit} {axis.count_in(source)} → {self.widths[name]}")
        if self.dropped:
            count = len(source.blocks)
            changes.append(f"blocks {count} → {count - len(self.dropped)}")
        return ", ".join(changes) or "unchanged"
