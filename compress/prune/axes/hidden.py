"""The hidden size: channels of the residual stream, in every block and at both ends."""

from collections.abc import Mapping

import torch

from hybridize.compress.prune.axes.base import Axis, Seen, Slices
from hybridize.modeling.config import HybridConfig, parameter_shapes

_READS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "in_proj"}
_WRITES = {"o_proj", "down_proj", "out_proj"}


class HiddenSize(Axis):
    """A unit is a channel of the residual stream: one choice for the whole model."""

    name = "hidden"
    unit = "hidden size"
    rounded = True

    def places(self, config: HybridConfig) -> tuple[int, ...]:
        """See `Axis.places`: -1 stands for the whole model."""
        return (-1,)

    def count(self, config: HybridConfig) -> int:
        """See `Axis.count`."""
        return int(config.hidden_size)

    def resized(self, config: HybridConfig, counts: Mapping[int, int]) -> HybridConfig:
        """See `Axis.resized`."""
        changed = config.replace_blocks(config.blocks)
        changed.hidden_size = counts[-1]
        return changed

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(hidden,)``."""
        return seen.output

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`; names are the whole model's, for all blocks at once."""
        changed: Slices = {}
        for name in parameter_shapes(config):
            module, leaf = name.split(".")[-2:]
            if module in ("embed_tokens", "lm_head") or module in _READS:
                if leaf == "weight":
                    changed[name] = (1, kept)
            elif module in _WRITES or (module == "norm" and ".mixer." not in name):
                changed[name] = (0, kept)
        return changed
