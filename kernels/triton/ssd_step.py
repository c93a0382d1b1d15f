"""One step of the recurrence in one launch that reads and writes the state once."""

import torch
import triton
import triton.language as tl

from hybridize.kernels.reference import ssd_step as reference
from hybridize.kernels.triton.launch import (
    accumulator,
    inner_contiguous,
    wants_gradient,
)
from hybridize.kernels.triton.pointwise import softplus
from hybridize.kernels.triton.ssd_chunk import clamped

_ROWS = 16
"""Rows of a state that one program moves on: many small programs, as bandwidth is all."""


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
    """See `hybridize.kernels.ssd_step`."""
    if wants_gradient(state, x, dt, A, B, C, D, dt_bias):  # a state changed in place has none here
        return reference.ssd_step(state, x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit)
    batch, heads, head_dim, d_state = state.shape
    x, B, C = (inner_contiguous(t, 2) for t in (x, B, C))
    dt = inner_contiguous(dt)
    A, (D, dt_bias) = A.contiguous(), (None if t is None else t.contiguous() for t in (D, dt_bias))
    y = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        _step[batch * heads, triton.cdiv(head_dim, _ROWS)](
            state, x, dt, A, B, C, D, dt_bias, y,
            *state.stride(), x.stride(0), dt.stride(0), B.stride(0), C.stride(0),
            heads, heads // B.shape[1],
            P=head_dim, N=d_state, LOW=float(dt_limit[0]), HIGH=float(dt_limit[1]),
            BLOCK_P=_ROWS, BLOCK_N=triton.next_power_of_2(d_state),
            ACC=accumulator(state.dtype), num_warps=4,
        )  # fmt: skip
    return y


@triton.jit
def move_on(
    cell, inside, x, key, query, raw, A, LOW: tl.constexpr, HIGH: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Take one token into some rows of a state; return what these give, without a skip."""
    step = clamped(softplus(raw), LOW, HIGH)
    state = tl.load(cell, mask=inside, other=0.0).to(ACC)
    state = tl.exp(step * A) * state + (step * x)[:, None] * key[None, :]
    tl.store(cell, state.to(cell.dtype.element_ty), mask=inside)
    return tl.sum(state * query[None, :], 1)


@triton.jit
def _step(
    state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, y_ptr,
    state_b, state_h, state_p, state_n, x_b, dt_b, B_b, C_b, heads, per_group,
    P: tl.constexpr, N: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    group = head // per_group
    p, n = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    cell = state_ptr + batch * state_b + head * state_h
    cell += p[:, None] * state_p + n[None, :] * state_n
    x = tl.load(x_ptr + batch * x_b + head * P + p, mask=p < P, other=0.0).to(ACC)
    key = tl.load(B_ptr + batch * B_b + group * N + n, mask=n < N, other=0.0).to(ACC)
    query = tl.load(C_ptr + batch * C_b + group * N + n, mask=n < N, other=0.0).to(ACC)
    raw = tl.load(dt_ptr + batch * dt_b + head).to(ACC)
    if bias_ptr is not None:
        raw += tl.load(bias_ptr + head).to(ACC)
    A = tl.load(A_ptr + head).to(ACC)
    y = move_on(cell, inside, x, key, query, raw, A, LOW, HIGH, ACC)
    if D_ptr is not None:
        y += tl.load(D_ptr + head).to(ACC) * x
    place = y_ptr + (batch * heads + head) * P + p
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=p < P)
