"""The kernels of the causal convolution: a block has some tokens and some channels.

Positions start at the first input in ``conv_state``, so token ``t`` is at ``t + width - 1``.
Output ``t`` reads the positions from ``t`` to ``t + width - 1``. For strides, see `ssd_kernels`.
"""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import silu, silu_grad


@triton.jit
def _load_inputs(
    x, conv_state, x_t, o_pos, o_c, T, channels, WIDTH: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return the inputs at some positions, ``(positions, channels)``; zeros out of range."""
    m_c = (o_c < channels)[None, :]
    o_t = (o_pos - (WIDTH - 1)).to(tl.int64)[:, None]
    m_x = (o_t >= 0) & (o_t < T) & m_c
    b_x = tl.load(x + o_t * x_t + o_c[None, :], mask=m_x, other=0.0).to(ACC)
    if conv_state is not None:
        m_state = (o_pos >= 0)[:, None] & (o_t < 0) & m_c
        p_state = conv_state + o_pos[:, None] * channels + o_c[None, :]
        b_x += tl.load(p_state, mask=m_state, other=0.0).to(ACC)
    return b_x


@triton.jit
def _load_sequence(seq_idx, o_pos, T, WIDTH: tl.constexpr):
    """Return the sequence of each position; ``conv_state`` belongs to the first sequence."""
    o_t = tl.minimum(tl.maximum(o_pos - (WIDTH - 1), 0), T - 1)
    return tl.load(seq_idx + o_t)


@triton.jit
def _convolve(
    x, conv_state, weight, bias, seq_idx, x_t, o_t, o_c, T, channels,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return the outputs before SiLU, ``(tokens, channels)``."""
    m_c = o_c < channels
    b_sum = tl.zeros((o_t.shape[0], o_c.shape[0]), ACC)
    if bias is not None:
        b_sum += tl.load(bias + o_c, mask=m_c, other=0.0).to(ACC)[None, :]
    for tap in tl.static_range(WIDTH):
        b_x = _load_inputs(x, conv_state, x_t, o_t + tap, o_c, T, channels, WIDTH, ACC)
        if seq_idx is not None:
            b_seq = _load_sequence(seq_idx, o_t + (WIDTH - 1), T, WIDTH)
            b_tap_seq = _load_sequence(seq_idx, o_t + tap, T, WIDTH)
            b_x = tl.where((b_seq == b_tap_seq)[:, None], b_x, 0.0)
        b_weight = tl.load(weight + o_c * WIDTH + tap, mask=m_c, other=0.0).to(ACC)
        b_sum += b_x * b_weight[None, :]
    return b_sum


@triton.jit(do_not_specialize=["T", "blocks", "x_b"])
def conv_forward(
    x, weight, bias, conv_state, seq_idx, y, x_b, x_t, T, channels, blocks,
    WIDTH: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write one block of outputs; ``blocks`` is the number of blocks of tokens."""
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    o_t = tl.program_id(0) % blocks * BT + tl.arange(0, BT)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += i_b * x_b * x_t
    if conv_state is not None:
        conv_state += i_b * (WIDTH - 1) * channels
    if seq_idx is not None:
        seq_idx += i_b * T
    b_sum = _convolve(
        x, conv_state, weight, bias, seq_idx, x_t, o_t, o_c, T, channels, WIDTH, ACC
    )  # fmt: skip
    p_y = y + (i_b * T + o_t)[:, None] * channels + o_c[None, :]
    m_y = (o_t < T)[:, None] & (o_c < channels)[None, :]
    tl.store(p_y, silu(b_sum).to(y.dtype.element_ty), mask=m_y)


@triton.jit(do_not_specialize=["T", "programs", "x_b", "dy_b"])
def conv_backward(
    x, weight, bias, conv_state, seq_idx, dy, dx, dconv_state, sums,
    x_b, x_t, dy_b, dy_t, T, channels, programs,
    WIDTH: tl.constexpr, SUMS: tl.constexpr, BLOCKS: tl.constexpr, BT: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ``BLOCKS`` blocks of positions.

    ``sums`` gets the gradients of the weight and of the bias, summed over these blocks:
    ``(WIDTH + 1, channels)``. ``programs`` is the number of programs per sequence.
    """
    i_b = (tl.program_id(0) // programs).to(tl.int64)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_c = o_c < channels
    x += i_b * x_b * x_t
    dy += i_b * dy_b * dy_t
    if conv_state is not None:
        conv_state += i_b * (WIDTH - 1) * channels
    if seq_idx is not None:
        seq_idx += i_b * T
    o_s = tl.arange(0, SUMS)[:, None]  # one row per tap, then one for the bias
    b_sums = tl.zeros((SUMS, BC), ACC)
    start = tl.program_id(0) % programs * (BLOCKS * BT)
    for i_block in range(0, BLOCKS):
        o_pos = start + i_block * BT + tl.arange(0, BT)
        b_x = _load_inputs(x, conv_state, x_t, o_pos, o_c, T, channels, WIDTH, ACC)
        b_dx = tl.zeros((BT, BC), ACC)
        for tap in tl.static_range(WIDTH):
            o_t = o_pos - tap  # the output that reads this position with this tap
            m_dy = ((o_t >= 0) & (o_t < T))[:, None] & m_c[None, :]
            p_dy = dy + o_t.to(tl.int64)[:, None] * dy_t + o_c[None, :]
            b_dy = tl.load(p_dy, mask=m_dy, other=0.0).to(ACC)
            b_sum = _convolve(
                x, conv_state, weight, bias, seq_idx, x_t, o_t, o_c, T, channels, WIDTH, ACC
            )  # fmt: skip
            b_dsum = b_dy * silu_grad(b_sum)
            if tap == 0:  # the loop visits each output once per tap; add it to the bias only once
                b_sums += tl.where(o_s == WIDTH, tl.sum(b_dsum, 0)[None, :], 0.0)
            if seq_idx is not None:
                b_seq = _load_sequence(seq_idx, o_t + (WIDTH - 1), T, WIDTH)
                b_tap_seq = _load_sequence(seq_idx, o_pos, T, WIDTH)
                b_dsum = tl.where((b_seq == b_tap_seq)[:, None], b_dsum, 0.0)
            b_weight = tl.load(weight + o_c * WIDTH + tap, mask=m_c, other=0.0).to(ACC)
            b_dx += b_dsum * b_weight[None, :]
            b_sums += tl.where(o_s == tap, tl.sum(b_dsum * b_x, 0)[None, :], 0.0)
        o_t = (o_pos - (WIDTH - 1)).to(tl.int64)
        m_dx = ((o_t >= 0) & (o_t < T))[:, None] & m_c[None, :]
        p_dx = dx + (i_b * T + o_t)[:, None] * channels + o_c[None, :]
        tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=m_dx)
        if dconv_state is not None:
            m_state = (o_t < 0)[:, None] & m_c[None, :]
            p_state = dconv_state + (i_b * (WIDTH - 1) + o_pos)[:, None] * channels + o_c[None, :]
            tl.store(p_state, b_dx.to(dconv_state.dtype.element_ty), mask=m_state)
    p_sums = sums + (tl.program_id(0).to(tl.int64) * (WIDTH + 1) + o_s) * channels + o_c[None, :]
    tl.store(p_sums, b_sums, mask=(o_s <= WIDTH) & m_c[None, :])


@triton.jit
def conv_step(
    x, conv_state, weight, bias, y, x_b, state_b, state_t, state_c, channels,
    WIDTH: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write one token's outputs, and update the conv_state."""
    i_b = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_c = o_c < channels
    p_state = conv_state + i_b * state_b + o_c * state_c
    b_new = tl.load(x + i_b * x_b + o_c, mask=m_c, other=0.0)
    b_sum = tl.zeros((BC,), ACC)
    if bias is not None:
        b_sum += tl.load(bias + o_c, mask=m_c, other=0.0).to(ACC)
    for tap in tl.static_range(WIDTH):
        b_x = b_new.to(ACC)
        if tap < WIDTH - 1:
            b_stored = tl.load(p_state + tap * state_t, mask=m_c, other=0.0)
            b_x = b_stored.to(b_new.dtype).to(ACC)
            if tap > 0:
                tl.store(p_state + (tap - 1) * state_t, b_stored, mask=m_c)
        b_weight = tl.load(weight + o_c * WIDTH + tap, mask=m_c, other=0.0).to(ACC)
        b_sum += b_x * b_weight
    if WIDTH > 1:
        p_last = p_state + (WIDTH - 2) * state_t
        tl.store(p_last, b_new.to(conv_state.dtype.element_ty), mask=m_c)
    tl.store(y + i_b * channels + o_c, silu(b_sum).to(y.dtype.element_ty), mask=m_c)
