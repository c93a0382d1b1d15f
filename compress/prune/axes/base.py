"""What a pruning axis is: units that a block has a number of, and how some of them are kept."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import BlockSizes

Slices = dict[str, tuple[int, torch.Tensor]]
"""For each parameter of a mixer that changes: along which dimension, and what stays of it."""


@dataclass(frozen=True)
class Seen:
    """What was measured in a block, or, for the residual stream, in front of all of them.

    Attributes:
        output: ``(width,)``, for each channel that is read by the block's last linear layer: its
            mean square, times the power of the weights that read it.
        state: ``(groups × d_state,)``, the product of the mean squares of B and C; Mamba-2 alone.
    """

    output: torch.Tensor
    state: torch.Tensor | None = None


class Axis(ABC):
    """One way to make a model narrower.

    Attributes:
        name: as ``--axes`` and the tables call it.
        unit: what there is a number of, in a word or two.
        rounded: whether numbers should be multiples of ``--multiple-of``.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    rounded: ClassVar[bool] = False

    @abstractmethod
    def places(self, config: HybridConfig) -> tuple[int, ...]:
        """Return the blocks that have such units; none if they are not all of one size."""

    @abstractmethod
    def count(self, config: HybridConfig) -> int:
        """Return how many units each of them has."""

    @abstractmethod
    def resized(self, config: HybridConfig, counts: Mapping[int, int]) -> HybridConfig:
        """Return the model with so many of them in each of some blocks, by their places."""

    def possible(self, config: HybridConfig, count: int) -> bool:
        """Tell whether a model with so many of them can be."""
        return 0 < count <= self.count(config)

    def keep(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """Return which units stay, in their order.

        Args:
            scores: of one block's units, ``(units,)`` or as the axis shapes them.
            count: how many stay.
        """
        return scores.topk(count).indices.sort().values

    def lost(self, scores: torch.Tensor, count: int) -> float:
        """Return which share of the scores leaves with the units that do."""
        total = float(scores.sum())
        kept = float(scores.gather(-1, self.keep(scores, count)).sum())
        return 1 - kept / total if total > 0 else 0.0

    @abstractmethod
    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """Return what the units of a block are worth, in the shape that `keep` wants."""

    @abstractmethod
    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """Return how one block's parameters change.

        Args:
            config: of the model before.
            place: the block.
            kept: what `keep` returned.
        """


class BlockAxis(Axis):
    """An axis within the blocks of one kind.

    Attributes:
        kind: the class of their sizes.
    """

    kind: ClassVar[type[BlockSizes]]

    def places(self, config: HybridConfig) -> tuple[int, ...]:
        """See `Axis.places`."""
        found = [i for i, block in enumerate(config.blocks) if isinstance(block, self.kind)]
        same = {self.units(config.blocks[place]) for place in found}
        return tuple(found) if len(same) == 1 else ()

    def count(self, config: HybridConfig) -> int:
        """See `Axis.count`."""
        return self.units(config.blocks[self.places(config)[0]])

    def resized(self, config: HybridConfig, counts: Mapping[int, int]) -> HybridConfig:
        """See `Axis.resized`."""
        return config.replace_blocks(
            self.with_units(block, counts[place]) if place in counts else block
            for place, block in enumerate(config.blocks)
        )

    @abstractmethod
    def units(self, sizes: BlockSizes) -> int:
        """Return how many units a block of these sizes has."""

    @abstractmethod
    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """Return the sizes of a block with so many units."""


def spans(units: torch.Tensor, width: int) -> torch.Tensor:
    """Return the rows of units that are ``width`` rows each."""
    return (units[..., None] * width + torch.arange(width)).flatten()
