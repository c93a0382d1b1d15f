"""One step of the SSD recurrence, in one launch that reads and writes the state once."""

import torch
import triton

from hybridize.kernels.reference import ssd_step as reference
from hybridize.kernels.triton import ssd_step_kernels as kernels
from hybridize.kernels.triton.launch import accumulator, inner_contiguous, wants_gradient

_ROWS = 16
"""Rows of the state per program: many small programs, because memory bandwidth is the limit."""


def ssd_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """Implement `hybridize.kernels.ssd_step`."""
    # The kernel updates the state in place and has no gradient.
    if wants_gradient(state, x, dt, A, B, C, D, dt_bias):
        return reference.ssd_step(state, x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit)
    batch, heads, head_dim, d_state = state.shape
    x, B, C = (inner_contiguous(t, 2) for t in (x, B, C))
    dt = inner_contiguous(dt)
    A = A.contiguous()
    D, dt_bias = (None if t is None else t.contiguous() for t in (D, dt_bias))
    y = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        kernels.scan_step[batch * heads, triton.cdiv(head_dim, _ROWS)](
            state, x, dt, A, B, C, D, dt_bias, y,
            *state.stride(), x.stride(0), dt.stride(0), B.stride(0), C.stride(0),
            heads, heads // B.shape[1],
            P=head_dim, N=d_state, LOW=float(dt_limit[0]), HIGH=float(dt_limit[1]),
            BP=_ROWS, BN=triton.next_power_of_2(d_state),
            ACC=accumulator(state.dtype), num_warps=4,
        )  # fmt: skip
    return y
