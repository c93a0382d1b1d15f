"""A smaller model as plain numbers, and how it follows from a larger one."""

from dataclasses import dataclass, field

from hybridize.compress.prune.axes import AXES, Axis
from hybridize.modeling.config import HybridConfig


@dataclass(frozen=True)
class Architecture:
    """What to make of a model.

    Attributes:
        widths: how many units each axis keeps, by the axis's name; those left out keep all.
        dropped: blocks that go altogether, by their places.
        single: where blocks differ: how many units each keeps, by the axis's name and the block's
            place. Goes before ``widths``.
    """

    widths: dict[str, int] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    single: dict[str, dict[int, int]] = field(default_factory=dict)

    def counts(self, axis: Axis, config: HybridConfig) -> dict[int, int]:
        """Return how many units blocks keep along an axis; empty if it changes nothing.

        Args:
            axis: the axis.
            config: the model as it is when it is this axis's turn.
        """
        if axis.name in self.single:
            return self.single[axis.name]
        count = self.widths.get(axis.name)
        places = axis.places(config)
        if count is None or not places or count == axis.count(config):
            return {}
        return dict.fromkeys(places, count)

    def resized(self, axis: Axis, config: HybridConfig) -> HybridConfig:
        """Return a model behind this axis's turn; see `counts`."""
        counts = self.counts(axis, config)
        return axis.resized(config, counts) if counts else config

    def config(self, source: HybridConfig) -> HybridConfig:
        """Return the configuration of the smaller model."""
        config = source
        for axis in AXES.values():
            config = self.resized(axis, config)
        if self.dropped:
            blocks = [b for i, b in enumerate(config.blocks) if i not in self.dropped]
            config = config.replace_blocks(blocks)
        return config

    def in_words(self, source: HybridConfig) -> str:
        """Say in what it differs from a model."""
        words = []
        for name, axis in AXES.items():
            if name in self.single:
                left = [n for place, n in self.single[name].items() if place not in self.dropped]
                words.append(f"{axis.unit} {axis.count(source)} → {min(left)} to {max(left)}")
            elif name in self.widths and self.widths[name] != axis.count(source):
                words.append(f"{axis.unit} {axis.count(source)} → {self.widths[name]}")
        if self.dropped:
            count = len(source.blocks)
            words.append(f"blocks {count} → {count - len(self.dropped)}")
        return ", ".join(words) or "as it was"
