"""One decoding step of a Mamba-2 block, without its input and output projections."""

import torch

from hybridize.kernels.reference.conv import causal_conv1d_step
from hybridize.kernels.reference.norm import gated_rms_norm
from hybridize.kernels.reference.ssd_step import ssd_step


def mamba2_step(
    projected: torch.Tensor,
    conv_state: torch.Tensor,
    state: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    *,
    group_size: int,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """Implement `hybridize.kernels.mamba2_step`."""
    heads, head_dim, d_state = state.shape[1:]
    inner, channels = heads * head_dim, conv_state.shape[2]
    gate, conv_input, dt = projected.split((inner, channels, heads), dim=-1)
    mixed = causal_conv1d_step(conv_input, conv_state, conv_weight, conv_bias)
    bc_width = (channels - inner) // 2
    x, B, C = mixed.split((inner, bc_width, bc_width), dim=-1)
    A = -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))
    y = ssd_step(
        state,
        x.unflatten(-1, (heads, head_dim)),
        dt,
        A,
        B.unflatten(-1, (-1, d_state)),
        C.unflatten(-1, (-1, d_state)),
        D=D,
        dt_bias=dt_bias,
        dt_limit=dt_limit,
    )
    return gated_rms_norm(y.flatten(1), gate, norm_weight, eps, group_size=group_size)
