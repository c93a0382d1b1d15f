"""A smaller model as plain numbers, and how it follows from a larger one."""

from dataclasses import dataclass, field

from hybridize.compress.prune.axes import AXES
from hybridize.modeling.config import HybridConfig


@dataclass(frozen=True)
class Architecture:
    """What to make of a model.

    Attributes:
        widths: how many units each axis keeps, by the axis's name; those left out keep all.
        dropped: blocks that go altogether, by their places.
    """

    widths: dict[str, int] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()

    def config(self, source: HybridConfig) -> HybridConfig:
        """Return the configuration of the smaller model."""
        config = source
        for name, axis in AXES.items():
            if name in self.widths and axis.places(config):
                config = axis.resized(config, self.widths[name])
        if self.dropped:
            blocks = [b for i, b in enumerate(config.blocks) if i not in self.dropped]
            config = config.replace_blocks(blocks)
        return config

    def in_words(self, source: HybridConfig) -> str:
        """Say in what it differs from a model."""
        words = []
        for name, axis in AXES.items():
            if name in self.widths and self.widths[name] != axis.count(source):
                words.append(f"{axis.unit} {axis.count(source)} → {self.widths[name]}")
        if self.dropped:
            count = len(source.blocks)
            words.append(f"blocks {count} → {count - len(self.dropped)}")
        return ", ".join(words) or "as it was"
