"""The attention block's mixer: causal attention with grouped queries."""

import torch
from torch import nn

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.linear import Linear
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.layers.rope import rotate
from hybridize.modeling.layers.sizes import AttentionSizes


class Attention(nn.Module):
    """Attention with grouped queries; the context gives the function (SDPA, flash, ...)."""

    def __init__(self, config: HybridConfig, sizes: AttentionSizes, layer_idx: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, sizes.num_heads * sizes.head_dim
        kv_width = sizes.num_kv_heads * sizes.head_dim
        self.config, self.sizes, self.layer_idx = config, sizes, layer_idx
        # transformers' attention functions read these two attributes.
        self.is_causal = True
        self.num_key_value_groups = sizes.num_heads // sizes.num_kv_heads
        self.scaling = sizes.head_dim**-0.5 if sizes.scale is None else sizes.scale
        self.layer_type = config.layer_types[layer_idx]

        self.q_proj = Linear(hidden, width, bias=sizes.qkv_bias)
        self.k_proj = Linear(hidden, kv_width, bias=sizes.qkv_bias)
        self.v_proj = Linear(hidden, kv_width, bias=sizes.qkv_bias)
        self.o_proj = Linear(width, hidden, bias=sizes.out_bias)
        if sizes.qk_norm:
            self.q_norm = RMSNorm(sizes.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(sizes.head_dim, config.norm_eps)

    def forward(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Map ``(batch, length, hidden)`` to the same."""
        return self.o_proj(self.heads(x, context))

    def heads(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Return the input of the output projection, ``(batch, length, num_heads × head_dim)``."""
        heads = (*x.shape[:-1], -1, self.sizes.head_dim)
        q, k = self.q_proj(x).view(heads), self.k_proj(x).view(heads)
        if self.sizes.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if self.sizes.rope and context.rotary is not None:
            q, k = rotate(q, *context.rotary), rotate(k, *context.rotary)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer_idx)
        y, _ = context.attention_function(
            self,
            q,
            k,
            v,
            context.attention_masks[self.layer_type],
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=self.sizes.sliding_window,
            **context.attention_kwargs,
        )
        return y.reshape(*x.shape[:-1], -1)
