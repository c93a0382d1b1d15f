"""The kernels of one token's way through a Mamba-2 block."""

import triton
import triton.language as tl

from hybridize.kernels.triton.norm_kernels import normalized
from hybridize.kernels.triton.pointwise import silu
from hybridize.kernels.triton.ssd_step import move_on


@triton.jit
def _convolved(
    input_ptr, window_ptr, weight_ptr, bias_ptr, window_t, window_c, channel, known,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return some channels behind the convolution and SiLU; the conv_state stays as it is."""
    newest = tl.load(input_ptr + channel, mask=known, other=0.0)
    total = tl.load(weight_ptr + channel * WIDTH + WIDTH - 1, mask=known, other=0.0).to(ACC)
    total *= newest.to(ACC)
    for tap in tl.static_range(WIDTH - 1):
        place = window_ptr + tap * window_t + channel * window_c
        values = tl.load(place, mask=known, other=0.0).to(newest.dtype).to(ACC)
        total += values * tl.load(weight_ptr + channel * WIDTH + tap, mask=known, other=0.0).to(ACC)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channel, mask=known, other=0.0).to(ACC)
    return silu(total)


@triton.jit
def recur(
    projected_ptr, window_ptr, state_ptr, weight_ptr, bias_ptr, A_log_ptr, D_ptr, dt_bias_ptr,
    y_ptr, projected_b, window_b, window_t, window_c, state_b, state_h, state_p, state_n,
    heads, per_group,
    P: tl.constexpr, N: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Move some rows of one head's state on, and write what they give."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    inner, shared = heads * P, heads // per_group * N
    p, n = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    input_ptr = projected_ptr + batch * projected_b + inner  # behind the gate
    window_ptr += batch * window_b
    key = inner + head // per_group * N + n  # the channels of B
    x = _convolved(
        input_ptr, window_ptr, weight_ptr, bias_ptr, window_t, window_c, head * P + p, p < P,
        WIDTH, ACC,
    )  # fmt: skip
    B = _convolved(
        input_ptr, window_ptr, weight_ptr, bias_ptr, window_t, window_c, key, n < N, WIDTH, ACC
    )
    C = _convolved(
        input_ptr, window_ptr, weight_ptr, bias_ptr, window_t, window_c, key + shared, n < N,
        WIDTH, ACC,
    )  # fmt: skip
    raw = tl.load(input_ptr + inner + 2 * shared + head).to(ACC)
    raw += tl.load(dt_bias_ptr + head).to(ACC)
    decay = -tl.exp(tl.load(A_log_ptr + head).to(ACC))
    cell = state_ptr + batch * state_b + head * state_h
    cell += p[:, None] * state_p + n[None, :] * state_n
    inside = (p < P)[:, None] & (n < N)[None, :]
    y = move_on(cell, inside, x, B, C, raw, decay, LOW, HIGH, ACC)
    y += tl.load(D_ptr + head).to(ACC) * x
    place = y_ptr + batch * inner + head * P + p
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=p < P)


@triton.jit
def finish(
    y_ptr, projected_ptr, weight_ptr, window_ptr, normal_ptr,
    projected_b, window_b, window_t, window_c, inner, channels, share,
    EPS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gate and normalize one group of channels, and move a share of the conv_state on."""
    batch = tl.program_id(0).to(tl.int64)
    projected_ptr += batch * projected_b
    place = tl.arange(0, BLOCK)
    known = place < GROUP
    column = tl.program_id(1) * GROUP + place
    stored = tl.load(y_ptr + batch * inner + column, mask=known, other=0.0)
    gate = tl.load(projected_ptr + column, mask=known, other=0.0).to(ACC)
    gated = stored.to(ACC) * silu(gate)
    normal, _ = normalized(gated[None, :], EPS, GROUP)
    weight = tl.load(weight_ptr + column, mask=known, other=0.0).to(ACC)[None, :]
    # Rounded to the input's dtype before the weight, as every checkpoint's own code does.
    normal = normal.to(stored.dtype).to(ACC) * weight
    target = normal_ptr + batch * inner + column[None, :]
    tl.store(target, normal.to(normal_ptr.dtype.element_ty), mask=known[None, :])

    channel = tl.program_id(1) * share + tl.arange(0, BLOCK_C)
    mine = (tl.arange(0, BLOCK_C) < share) & (channel < channels)
    window_ptr += batch * window_b + channel * window_c
    for tap in tl.static_range(1, WIDTH - 1):
        values = tl.load(window_ptr + tap * window_t, mask=mine, other=0.0)
        tl.store(window_ptr + (tap - 1) * window_t, values, mask=mine)
    if WIDTH > 1:
        newest = tl.load(projected_ptr + inner + channel, mask=mine, other=0.0)
        to = window_ptr + (WIDTH - 2) * window_t
        tl.store(to, newest.to(window_ptr.dtype.element_ty), mask=mine)
