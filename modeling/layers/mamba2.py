"""Mamba-2: a gated, convolved state-space scan."""

import torch
from torch import nn

from hybridize.kernels import causal_conv1d, mamba2_step, ssd_scan
from hybridize.modeling.cache.compact import CompactCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.linear import Linear
from hybridize.modeling.layers.norm import GatedRMSNorm
from hybridize.modeling.layers.sizes import MambaSizes


class Mamba2(nn.Module):
    """The mixer of Dao & Gu 2024 (arXiv 2405.21060, figure 6), gated before its norm."""

    def __init__(self, config: HybridConfig, sizes: MambaSizes, index: int) -> None:
        super().__init__()
        self.sizes, self.layer_idx = sizes, index
        self.in_proj = Linear(config.hidden_size, sum(sizes.in_proj_splits()), bias=sizes.proj_bias)
        # Holds the filters under the name and shape that every format has; the kernel runs them.
        self.conv1d = nn.Conv1d(
            sizes.conv_channels,
            sizes.conv_channels,
            sizes.conv_kernel,
            groups=sizes.conv_channels,
            bias=sizes.conv_bias,
        )
        self.dt_bias = nn.Parameter(torch.zeros(sizes.num_heads))
        self.A_log = nn.Parameter(torch.zeros(sizes.num_heads))
        self.D = nn.Parameter(torch.ones(sizes.num_heads))
        self.norm = GatedRMSNorm(sizes.d_inner, sizes.d_inner // sizes.n_groups, config.norm_eps)
        self.out_proj = Linear(sizes.d_inner, config.hidden_size, bias=sizes.proj_bias)

    def forward(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Scan: ``(batch, length, hidden)`` to the same."""
        return self.out_proj(self.features(self.in_proj(x), context))

    def features(self, projected: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Return what the output projection sees, ``(batch, length, inner)``.

        Args:
            projected: ``(batch, length, sum(in_proj_splits()))``.
            context: see `BlockContext`.
        """
        conv_state, state = self._remembered(context)
        decoding = projected.shape[1] == 1 and context.seq_idx is None
        if decoding and conv_state is not None and state is not None:
            y = self._step(projected[:, 0], conv_state, state)[:, None]
            if isinstance(context.cache, CompactCache):  # of which the state was a copy
                context.cache.update_recurrent_state(state, self.layer_idx)
            return y
        sizes = self.sizes
        gate, conv_input, dt = projected.split(
            (sizes.d_inner, sizes.conv_channels, sizes.num_heads), dim=-1
        )
        if context.padding_mask is not None:
            # Padding must look like the nothing before a sequence to the convolution; masking
            # the input instead would let the projection's bias through.
            conv_input = conv_input * context.padding_mask[..., None]
        y = self._scan(conv_input, dt, conv_state, state, context)
        return self.norm(y.flatten(-2), gate)

    def _remembered(self, context: BlockContext) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if context.cache is None:
            return None, None
        conv_state = context.cache.get_conv_state(self.layer_idx)
        state = context.cache.get_recurrent_state(self.layer_idx)
        if conv_state is None or state is None:
            return None, None
        if context.goes_on is not None:  # what another sequence left is nothing to this one
            conv_state = conv_state * context.goes_on[:, None, None]
            state = state * context.goes_on[:, None, None, None]
        return conv_state.transpose(1, 2), state

    def _step(
        self, projected: torch.Tensor, conv_state: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """Decode one token; the cache's conv_state and state move on in place."""
        return mamba2_step(
            projected,
            conv_state,
            state,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.A_log,
            self.D,
            self.dt_bias,
            self.norm.weight,
            self.norm.eps,
            group_size=self.norm.group_size,
            dt_limit=self.sizes.dt_limit,
        )

    def _scan(
        self,
        conv_input: torch.Tensor,
        dt: torch.Tensor,
        conv_state: torch.Tensor | None,
        state: torch.Tensor | None,
        context: BlockContext,
    ) -> torch.Tensor:
        """Take in a whole sequence, or the next piece of one."""
        mixed, conv_state = causal_conv1d(
            conv_input,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            conv_state=conv_state,
            seq_idx=context.seq_idx,
        )
        if context.padding_mask is not None:
            # A step of zero: the token neither decays the state nor adds to it.
            mixed = mixed * context.padding_mask[..., None]
            dt = dt.masked_fill(~context.padding_mask[..., None], -torch.inf)
        x, B, C = self._split(mixed)
        y, state = ssd_scan(
            x,
            dt,
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B,
            C,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_limit=self.sizes.dt_limit,
            initial_state=state,
            seq_idx=context.seq_idx,
        )
        if context.cache is not None:
            context.cache.update_conv_state(conv_state.transpose(1, 2), self.layer_idx)
            context.cache.update_recurrent_state(state, self.layer_idx)
        return y

    def _split(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take ``(..., channels)`` apart into x per head, and B and C per group."""
        _, inner, bc, _, _ = self.sizes.in_proj_splits()
        x, B, C = mixed.split((inner, bc, bc), dim=-1)
        groups = (self.sizes.n_groups, self.sizes.d_state)
        return (
            x.unflatten(-1, (self.sizes.num_heads, self.sizes.head_dim)),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
        )
