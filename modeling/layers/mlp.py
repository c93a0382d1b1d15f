"""The MLP mixer (feed-forward network)."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from hybridize.kernels import squared_relu, swiglu
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.linear import Linear
from hybridize.modeling.layers.sizes import MLPSizes


class FeedForward(nn.Module):
    """A gated (SwiGLU, GEGLU, ...) or plain MLP, with any activation function of transformers."""

    def __init__(self, config: HybridConfig, sizes: MLPSizes, layer_idx: int) -> None:
        super().__init__()
        del layer_idx  # an MLP has no cache
        hidden, width = config.hidden_size, sizes.intermediate_size
        self.gate_proj = Linear(hidden, width, bias=sizes.bias) if sizes.gated else None
        self.up_proj = Linear(hidden, width, bias=sizes.bias)
        self.down_proj = Linear(width, hidden, bias=sizes.bias)
        self.act = ACT2FN[sizes.activation] if sizes.activation != "relu2" else squared_relu
        self.is_swiglu = sizes.gated and sizes.activation in ("silu", "swish")

    def forward(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Map ``(batch, length, hidden)`` to the same, token by token."""
        del context
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(swiglu(gate, up) if self.is_swiglu else self.act(gate) * up)
