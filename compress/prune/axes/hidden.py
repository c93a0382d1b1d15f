"""The hidden size: the channels of the residual stream, in all blocks, embeddings and head."""

from dataclasses import replace

import torch
from typing_extensions import override

from hybridize.compress.prune.axes.base import (
    LAST_LINEAR,
    ActivationStats,
    Axis,
    Slices,
    rounded_increment,
)
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes

# The linear layers of mixers whose input is the residual stream.
_READERS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "in_proj"}


class HiddenSize(Axis[ModelSpec]):
    """A unit is one channel of the residual stream. All blocks keep the same channels."""

    unit = "hidden size"
    block_kind = None

    @override
    def count(self, sizes: ModelSpec) -> int:
        return sizes.hidden_size

    @override
    def resize(self, sizes: ModelSpec, count: int) -> ModelSpec:
        return replace(sizes, hidden_size=count)

    @override
    def increment(self, sizes: ModelSpec, multiple_of: int | None) -> int:
        return rounded_increment(self.count(sizes), multiple_of)

    @override
    def score(self, sizes: ModelSpec, stats: ActivationStats) -> torch.Tensor:
        return stats.output  # (hidden_size,)

    @override
    def slices(self, sizes: ModelSpec, kept: torch.Tensor) -> Slices:
        slices: Slices = {}
        for name in parameter_shapes(sizes):
            module, parameter = name.split(".")[-2:]
            if module in ("embed_tokens", "lm_head") or module in _READERS:
                if parameter == "weight":
                    slices[name] = (1, kept)
            elif module in LAST_LINEAR or (module == "norm" and ".mixer." not in name):
                slices[name] = (0, kept)
        return slices
