"""The intermediate size of MLP blocks."""

from dataclasses import replace

import torch
from typing_extensions import override

from hybridize.compress.prune.axes.base import ActivationStats, Axis, Slices, rounded_increment
from hybridize.modeling.layers.sizes import MLPSizes


class IntermediateSize(Axis[MLPSizes]):
    """A unit is one channel between the linear layers."""

    unit = "MLP width"
    block_kind = MLPSizes
    varies_per_block = True

    @override
    def count(self, sizes: MLPSizes) -> int:
        return sizes.intermediate_size

    @override
    def resize(self, sizes: MLPSizes, count: int) -> MLPSizes:
        return replace(sizes, intermediate_size=count)

    @override
    def increment(self, sizes: MLPSizes, multiple_of: int | None) -> int:
        return rounded_increment(sizes.intermediate_size, multiple_of)

    @override
    def score(self, sizes: MLPSizes, stats: ActivationStats) -> torch.Tensor:
        return stats.output  # (intermediate_size,)

    @override
    def slices(self, sizes: MLPSizes, kept: torch.Tensor) -> Slices:
        rows = ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias")
        return dict.fromkeys(rows, (0, kept)) | {"down_proj.weight": (1, kept)}
