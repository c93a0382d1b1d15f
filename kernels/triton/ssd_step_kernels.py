"""The kernel of one step of the SSD recurrence."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import clamp, softplus


@triton.jit
def update_state(
    p_state, m_state, b_x, b_B, b_C, raw_dt, A,
    LOW: tl.constexpr, HIGH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Update some rows of a head's state by one token; return their outputs without D."""
    dt = clamp(softplus(raw_dt), LOW, HIGH)
    b_state = tl.load(p_state, mask=m_state, other=0.0).to(ACC)
    b_state = tl.exp(dt * A) * b_state + (dt * b_x)[:, None] * b_B[None, :]
    tl.store(p_state, b_state.to(p_state.dtype.element_ty), mask=m_state)
    return tl.sum(b_state * b_C[None, :], 1)


@triton.jit
def scan_step(
    state, x, dt, A, B, C, D, dt_bias, y,
    state_b, state_h, state_p, state_n, x_b, dt_b, B_b, C_b, heads, heads_per_group,
    P: tl.constexpr, N: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Update some rows of one head's state, and write their outputs."""
    i_b, i_h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    i_g = i_h // heads_per_group
    o_p, o_n = tl.program_id(1) * BP + tl.arange(0, BP), tl.arange(0, BN)
    m_p, m_n = o_p < P, o_n < N
    p_state = state + i_b * state_b + i_h * state_h
    p_state += o_p[:, None] * state_p + o_n[None, :] * state_n
    b_x = tl.load(x + i_b * x_b + i_h * P + o_p, mask=m_p, other=0.0).to(ACC)
    b_B = tl.load(B + i_b * B_b + i_g * N + o_n, mask=m_n, other=0.0).to(ACC)
    b_C = tl.load(C + i_b * C_b + i_g * N + o_n, mask=m_n, other=0.0).to(ACC)
    raw_dt = tl.load(dt + i_b * dt_b + i_h).to(ACC)
    if dt_bias is not None:
        raw_dt += tl.load(dt_bias + i_h).to(ACC)
    m_state = m_p[:, None] & m_n[None, :]
    head_A = tl.load(A + i_h).to(ACC)
    b_y = update_state(p_state, m_state, b_x, b_B, b_C, raw_dt, head_A, LOW, HIGH, ACC)
    if D is not None:
        b_y += tl.load(D + i_h).to(ACC) * b_x
    p_y = y + (i_b * heads + i_h) * P + o_p
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_p)
