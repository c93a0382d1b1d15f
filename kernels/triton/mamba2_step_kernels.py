"""The kernels of one decoding step of a Mamba-2 block."""

import triton
import triton.language as tl

from hybridize.kernels.triton.norm_kernels import normalize
from hybridize.kernels.triton.pointwise import silu
from hybridize.kernels.triton.ssd_step_kernels import update_state


@triton.jit
def _convolve(
    p_input, p_conv_state, weight, bias, conv_t, conv_c, o_c, m_c,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return some channels after the convolution and SiLU; do not update conv_state."""
    b_new = tl.load(p_input + o_c, mask=m_c, other=0.0)
    b_sum = tl.load(weight + o_c * WIDTH + WIDTH - 1, mask=m_c, other=0.0).to(ACC)
    b_sum *= b_new.to(ACC)
    for tap in tl.static_range(WIDTH - 1):
        b_x = tl.load(p_conv_state + tap * conv_t + o_c * conv_c, mask=m_c, other=0.0)
        b_x = b_x.to(b_new.dtype).to(ACC)
        b_sum += b_x * tl.load(weight + o_c * WIDTH + tap, mask=m_c, other=0.0).to(ACC)
    if bias is not None:
        b_sum += tl.load(bias + o_c, mask=m_c, other=0.0).to(ACC)
    return silu(b_sum)


@triton.jit
def conv_and_state(
    projected, conv_state, state, weight, bias, A_log, D, dt_bias, y,
    projected_b, conv_b, conv_t, conv_c, state_b, state_h, state_p, state_n,
    heads, heads_per_group,
    P: tl.constexpr, N: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Update some rows of one head's state, and write their outputs."""
    i_b, i_h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    inner, bc_width = heads * P, heads // heads_per_group * N
    o_p, o_n = tl.program_id(1) * BP + tl.arange(0, BP), tl.arange(0, BN)
    m_p, m_n = o_p < P, o_n < N
    p_input = projected + i_b * projected_b + inner  # after the gate
    p_conv_state = conv_state + i_b * conv_b
    o_B = inner + i_h // heads_per_group * N + o_n  # the channels of B
    b_x = _convolve(
        p_input, p_conv_state, weight, bias, conv_t, conv_c, i_h * P + o_p, m_p, WIDTH, ACC
    )  # fmt: skip
    b_B = _convolve(p_input, p_conv_state, weight, bias, conv_t, conv_c, o_B, m_n, WIDTH, ACC)
    b_C = _convolve(
        p_input, p_conv_state, weight, bias, conv_t, conv_c, o_B + bc_width, m_n, WIDTH, ACC
    )  # fmt: skip
    raw_dt = tl.load(p_input + inner + 2 * bc_width + i_h).to(ACC)
    raw_dt += tl.load(dt_bias + i_h).to(ACC)
    A = -tl.exp(tl.load(A_log + i_h).to(ACC))
    p_state = state + i_b * state_b + i_h * state_h
    p_state += o_p[:, None] * state_p + o_n[None, :] * state_n
    m_state = m_p[:, None] & m_n[None, :]
    b_y = update_state(p_state, m_state, b_x, b_B, b_C, raw_dt, A, LOW, HIGH, ACC)
    b_y += tl.load(D + i_h).to(ACC) * b_x
    p_y = y + i_b * inner + i_h * P + o_p
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_p)


@triton.jit
def gated_norm(
    y, projected, weight, conv_state, out,
    projected_b, conv_b, conv_t, conv_c, inner, channels, channels_per_program,
    EPS: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gate and normalize one group of channels, and update some channels of the conv_state."""
    i_b = tl.program_id(0).to(tl.int64)
    projected += i_b * projected_b
    o_g = tl.arange(0, BG)
    m_g = o_g < GROUP
    o_g += tl.program_id(1) * GROUP
    b_stored = tl.load(y + i_b * inner + o_g, mask=m_g, other=0.0)
    b_gate = tl.load(projected + o_g, mask=m_g, other=0.0).to(ACC)
    b_gated = b_stored.to(ACC) * silu(b_gate)
    b_norm, _ = normalize(b_gated[None, :], EPS, GROUP)
    b_weight = tl.load(weight + o_g, mask=m_g, other=0.0).to(ACC)[None, :]
    # Round to the input's dtype before multiplying by the weight, as transformers' models do.
    b_out = b_norm.to(b_stored.dtype).to(ACC) * b_weight
    p_out = out + i_b * inner + o_g[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_g[None, :])

    o_c = tl.arange(0, BC)
    m_c = o_c < channels_per_program
    o_c += tl.program_id(1) * channels_per_program
    m_c = m_c & (o_c < channels)
    p_conv_state = conv_state + i_b * conv_b + o_c * conv_c
    for tap in tl.static_range(1, WIDTH - 1):
        b_x = tl.load(p_conv_state + tap * conv_t, mask=m_c, other=0.0)
        tl.store(p_conv_state + (tap - 1) * conv_t, b_x, mask=m_c)
    if WIDTH > 1:
        b_new = tl.load(projected + inner + o_c, mask=m_c, other=0.0)
        p_last = p_conv_state + (WIDTH - 2) * conv_t
        tl.store(p_last, b_new.to(conv_state.dtype.element_ty), mask=m_c)
