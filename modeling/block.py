"""One residual block: a norm and a mixer."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.layers.sizes import BlockSizes


class HybridBlock(GradientCheckpointingLayer):
    """A norm, a mixer of any kind, and the residual connection around both."""

    def __init__(self, config: HybridConfig, sizes: BlockSizes, layer_idx: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = LAYER_KINDS[sizes.letter].mixer_class()(config, sizes, layer_idx)
        self.residual_multiplier = config.residual_multiplier
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Add the mixer's output to ``x``; both are ``(batch, length, hidden)``."""
        y = self.mixer(self.norm(x.to(self.norm.weight.dtype)), context)
        if self.residual_multiplier != 1.0:
            y = y * self.residual_multiplier
        if self.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x + y
