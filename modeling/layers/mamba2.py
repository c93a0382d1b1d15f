"""The mixer of a Mamba-2 block: a convolution, a state-space scan and a gated norm."""

import torch
from torch import nn

from hybridize.kernels import causal_conv1d, mamba2_step, ssd_scan
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.linear import Linear
from hybridize.modeling.layers.norm import GatedRMSNorm
from hybridize.modeling.layers.sizes import MambaSizes


class Mamba2(nn.Module):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060, figure 6), with the gate before the norm."""

    def __init__(self, config: HybridConfig, sizes: MambaSizes, layer_idx: int) -> None:
        super().__init__()
        self.sizes, self.layer_idx = sizes, layer_idx
        self.in_proj = Linear(config.hidden_size, sum(sizes.in_proj_splits()), bias=sizes.proj_bias)
        # Only stores the filters, under the name that all formats use; a kernel applies them.
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
        """Map ``(batch, length, hidden)`` to the same."""
        return self.out_proj(self.features(self.in_proj(x), context))

    def features(self, projected: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Return the input of the output projection, ``(batch, length, d_inner)``.

        Args:
            projected: ``(batch, length, sum(in_proj_splits()))``.
            context: see `BlockContext`.
        """
        states = None if context.cache is None else context.cache.read_ssm(self.layer_idx)
        decoding = projected.shape[1] == 1 and context.seq_idx is None
        if context.cache is not None and states is not None and decoding:
            y = self._step(projected[:, 0], *states)
            context.cache.after_ssm_step(self.layer_idx, states[1])
            return y[:, None]
        sizes = self.sizes
        gate, conv_input, dt = projected.split(
            (sizes.d_inner, sizes.conv_channels, sizes.num_heads), dim=-1
        )
        if context.padding_mask is not None:
            # The convolution must read zeros on padding, as before the start of a sequence. It is
            # not enough to mask the projection's input, because the projection may have a bias.
            conv_input = conv_input * context.padding_mask[..., None]
        y = self._scan(conv_input, dt, states, context)
        return self.norm(y.flatten(-2), gate)

    def _step(
        self, projected: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor
    ) -> torch.Tensor:
        """Decode one token per sequence, and update both states in place."""
        return mamba2_step(
            projected,
            conv_state,
            ssm_state,
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
        states: tuple[torch.Tensor, torch.Tensor] | None,
        context: BlockContext,
    ) -> torch.Tensor:
        """Run whole sequences, or the next part of them, and store the states in the cache.

        Args:
            conv_input: ``(batch, length, conv_channels)``.
            dt: ``(batch, length, num_heads)``, before softplus.
            states: convolution and SSM state before the first token; zero if None.
            context: see `BlockContext`.

        Returns:
            ``(batch, length, num_heads, head_dim)``.
        """
        conv_state, ssm_state = (None, None) if states is None else states
        if conv_state is not None and context.continues_previous is not None:
            conv_state = conv_state * context.continues_previous[:, None, None]
        if ssm_state is not None and context.continues_previous is not None:
            ssm_state = ssm_state * context.continues_previous[:, None, None, None]
        mixed, conv_state = causal_conv1d(
            conv_input,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            conv_state=conv_state,
            seq_idx=context.seq_idx,
        )
        if context.padding_mask is not None:
            # Δ becomes zero, so that padding neither decays the state nor adds to it.
            mixed = mixed * context.padding_mask[..., None]
            dt = dt.masked_fill(~context.padding_mask[..., None], -torch.inf)
        x, B, C = self.split(mixed)
        y, ssm_state = ssd_scan(
            x,
            dt,
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B,
            C,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_limit=self.sizes.dt_limit,
            initial_state=ssm_state,
            seq_idx=context.seq_idx,
        )
        if context.cache is not None:
            context.cache.write_ssm(self.layer_idx, conv_state, ssm_state)
        return y

    def split(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split ``(..., conv_channels)`` into x per head, and B and C per group."""
        _, d_inner, bc, _, _ = self.sizes.in_proj_splits()
        x, B, C = mixed.split((d_inner, bc, bc), dim=-1)
        groups = (self.sizes.n_groups, self.sizes.d_state)
        return (
            x.unflatten(-1, (self.sizes.num_heads, self.sizes.head_dim)),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
        )
