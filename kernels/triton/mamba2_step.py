"""One decoding step of a Mamba-2 block in two launches.

The first launch convolves and updates the SSM state. The second gates, normalizes and updates the
conv_state, which many programs of the first launch read.
"""

import torch
import triton

from hybridize.kernels.reference import mamba2_step as reference
from hybridize.kernels.triton import mamba2_step_kernels as kernels
from hybridize.kernels.triton.launch import (
    accumulator,
    inner_contiguous,
    norm_warps,
    wants_gradient,
)

_ROWS = 32
"""Rows of the state per program. Each program repeats the convolution of its group's B and C."""


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
    parameters = (conv_weight, A_log, D, dt_bias, norm_weight)
    # The kernels update the states in place and have no gradient.
    if wants_gradient(projected, conv_state, state, conv_bias, *parameters):
        return reference.mamba2_step(
            projected, conv_state, state, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight,
            eps, group_size=group_size, dt_limit=dt_limit,
        )  # fmt: skip
    batch, heads, head_dim, d_state = state.shape
    inner, (_, before, channels) = heads * head_dim, conv_state.shape
    ssm_groups, norm_groups = (channels - inner) // (2 * d_state), inner // group_size
    projected = inner_contiguous(projected)
    conv_weight, A_log, D, dt_bias, norm_weight = (t.contiguous() for t in parameters)
    conv_bias = None if conv_bias is None else conv_bias.contiguous()
    y = projected.new_empty(batch, inner)
    out = y.new_empty(y.shape, dtype=torch.promote_types(y.dtype, norm_weight.dtype))
    channels_per_program = triton.cdiv(channels, norm_groups)
    constants = {"WIDTH": before + 1, "ACC": accumulator(state.dtype)}
    with torch.cuda.device_of(projected):
        kernels.conv_and_state[batch * heads, triton.cdiv(head_dim, _ROWS)](
            projected, conv_state, state, conv_weight, conv_bias, A_log, D, dt_bias, y,
            projected.stride(0), *conv_state.stride(), *state.stride(), heads, heads // ssm_groups,
            P=head_dim, N=d_state, LOW=float(dt_limit[0]), HIGH=float(dt_limit[1]),
            BP=_ROWS, BN=triton.next_power_of_2(d_state), **constants, num_warps=4,
        )  # fmt: skip
        kernels.gated_norm[batch, norm_groups](
            y, projected, norm_weight, conv_state, out,
            projected.stride(0), *conv_state.stride(), inner, channels, channels_per_program,
            EPS=eps, GROUP=group_size, BG=triton.next_power_of_2(group_size),
            BC=triton.next_power_of_2(channels_per_program), **constants,
            num_warps=norm_warps(group_size),
        )  # fmt: skip
    return out
