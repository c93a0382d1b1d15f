"""The width of feed-forward blocks."""

from dataclasses import replace
from typing import ClassVar

import torch

from hybridize.compress.prune.axes.base import BlockAxis, Seen, Slices
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import BlockSizes, MLPSizes


class FeedForwardWidth(BlockAxis):
    """A unit is one channel between the linear layers."""

    name = "ffn"
    unit = "MLP width"
    rounded = True
    kind: ClassVar[type[BlockSizes]] = MLPSizes

    def units(self, sizes: BlockSizes) -> int:
        """See `BlockAxis.units`."""
        assert isinstance(sizes, MLPSizes)
        return sizes.intermediate_size

    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """See `BlockAxis.with_units`."""
        assert isinstance(sizes, MLPSizes)
        return replace(sizes, intermediate_size=count)

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(width,)``."""
        return seen.output

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`."""
        rows = ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias")
        return dict.fromkeys(rows, (0, kept)) | {"down_proj.weight": (1, kept)}
