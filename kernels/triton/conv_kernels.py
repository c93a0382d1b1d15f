"""The kernels of the causal convolution: a tile has some tokens and some channels.

Places count from the conv_state's first token, so that output ``t`` sees the places from ``t`` to
``t + width - 1``; those before ``width - 1`` are the conv_state's. Strides: see `ssd_kernels`.
"""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import silu, silu_slope


@triton.jit
def _inputs(
    x_ptr, window_ptr, x_t, place, channel, length, channels, WIDTH: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Return the inputs at some places, zeros where there is none."""
    BEFORE: tl.constexpr = WIDTH - 1
    known = (channel < channels)[None, :]
    token = (place - BEFORE).to(tl.int64)[:, None]
    there = (token >= 0) & (token < length) & known
    values = tl.load(x_ptr + token * x_t + channel[None, :], mask=there, other=0.0).to(ACC)
    if window_ptr is not None:
        there = (place >= 0)[:, None] & (token < 0) & known
        source = window_ptr + place[:, None] * channels + channel[None, :]
        values += tl.load(source, mask=there, other=0.0).to(ACC)
    return values


@triton.jit
def _sequence(index_ptr, place, length, WIDTH: tl.constexpr):
    """Return the sequences of some places; the conv_state is of the first one."""
    token = tl.minimum(tl.maximum(place - (WIDTH - 1), 0), length - 1)
    return tl.load(index_ptr + token)


@triton.jit
def _sums(
    x_ptr, window_ptr, weight_ptr, bias_ptr, index_ptr, x_t, token, channel, length, channels,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return some outputs before SiLU."""
    known = channel < channels
    total = tl.zeros((token.shape[0], channel.shape[0]), ACC)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channel, mask=known, other=0.0).to(ACC)[None, :]
    for tap in tl.static_range(WIDTH):
        values = _inputs(x_ptr, window_ptr, x_t, token + tap, channel, length, channels, WIDTH, ACC)
        if index_ptr is not None:
            here = _sequence(index_ptr, token + (WIDTH - 1), length, WIDTH)
            there = _sequence(index_ptr, token + tap, length, WIDTH)
            values = tl.where((here == there)[:, None], values, 0.0)
        weight = tl.load(weight_ptr + channel * WIDTH + tap, mask=known, other=0.0).to(ACC)
        total += values * weight[None, :]
    return total


@triton.jit(do_not_specialize=["length", "blocks", "x_b"])
def conv_forward(
    x_ptr, weight_ptr, bias_ptr, window_ptr, index_ptr, y_ptr, x_b, x_t, length, channels, blocks,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write one tile of outputs."""
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    token = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += batch * x_b * x_t
    if window_ptr is not None:
        window_ptr += batch * (WIDTH - 1) * channels
    if index_ptr is not None:
        index_ptr += batch * length
    total = _sums(
        x_ptr, window_ptr, weight_ptr, bias_ptr, index_ptr, x_t, token, channel, length, channels,
        WIDTH, ACC,
    )  # fmt: skip
    target = y_ptr + (batch * length + token)[:, None] * channels + channel[None, :]
    inside = (token < length)[:, None] & (channel < channels)[None, :]
    tl.store(target, silu(total).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "programs", "x_b", "dy_b"])
def conv_backward(
    x_ptr, weight_ptr, bias_ptr, window_ptr, index_ptr, dy_ptr, dx_ptr, dwindow_ptr, sums_ptr,
    x_b, x_t, dy_b, dy_t, length, channels, programs,
    WIDTH: tl.constexpr, SUMS: tl.constexpr, TILES: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the gradients of some tiles of places, and their sums for the weight and bias."""
    batch = (tl.program_id(0) // programs).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    x_ptr += batch * x_b * x_t
    dy_ptr += batch * dy_b * dy_t
    if window_ptr is not None:
        window_ptr += batch * (WIDTH - 1) * channels
    if index_ptr is not None:
        index_ptr += batch * length
    row = tl.arange(0, SUMS)[:, None]  # of each tap, and of the bias behind them
    sums = tl.zeros((SUMS, BLOCK_C), ACC)
    first = tl.program_id(0) % programs * (TILES * BLOCK_T)
    for tile in range(0, TILES):
        place = first + tile * BLOCK_T + tl.arange(0, BLOCK_T)
        values = _inputs(x_ptr, window_ptr, x_t, place, channel, length, channels, WIDTH, ACC)
        dvalues = tl.zeros((BLOCK_T, BLOCK_C), ACC)
        for tap in tl.static_range(WIDTH):
            token = place - tap  # of the output that has this place under its tap
            there = ((token >= 0) & (token < length))[:, None] & known[None, :]
            source = dy_ptr + token.to(tl.int64)[:, None] * dy_t + channel[None, :]
            dy = tl.load(source, mask=there, other=0.0).to(ACC)
            total = _sums(
                x_ptr, window_ptr, weight_ptr, bias_ptr, index_ptr, x_t, token, channel, length,
                channels, WIDTH, ACC,
            )  # fmt: skip
            dsum = dy * silu_slope(total)
            if tap == 0:  # all outputs pass under any tap; they are counted under this one
                sums += tl.where(row == WIDTH, tl.sum(dsum, 0)[None, :], 0.0)
            if index_ptr is not None:
                here = _sequence(index_ptr, token + (WIDTH - 1), length, WIDTH)
                mine = _sequence(index_ptr, place, length, WIDTH)
                dsum = tl.where((here == mine)[:, None], dsum, 0.0)
            weight = tl.load(weight_ptr + channel * WIDTH + tap, mask=known, other=0.0).to(ACC)
            dvalues += dsum * weight[None, :]
            sums += tl.where(row == tap, tl.sum(dsum * values, 0)[None, :], 0.0)
        token = (place - (WIDTH - 1)).to(tl.int64)
        inside = ((token >= 0) & (token < length))[:, None] & known[None, :]
        target = dx_ptr + (batch * length + token)[:, None] * channels + channel[None, :]
        tl.store(target, dvalues.to(dx_ptr.dtype.element_ty), mask=inside)
        if dwindow_ptr is not None:
            inside = (token < 0)[:, None] & known[None, :]
            target = dwindow_ptr + (batch * (WIDTH - 1) + place)[:, None] * channels
            target += channel[None, :]
            tl.store(target, dvalues.to(dwindow_ptr.dtype.element_ty), mask=inside)
    target = sums_ptr + (tl.program_id(0).to(tl.int64) * (WIDTH + 1) + row) * channels
    tl.store(target + channel[None, :], sums, mask=(row <= WIDTH) & known[None, :])


@triton.jit
def conv_step(
    x_ptr, window_ptr, weight_ptr, bias_ptr, y_ptr, x_b, window_b, window_t, window_c, channels,
    WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write one token's outputs, and move the conv_state on."""
    batch = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    window_ptr += batch * window_b + channel * window_c
    newest = tl.load(x_ptr + batch * x_b + channel, mask=known, other=0.0)
    total = tl.zeros((BLOCK_C,), ACC)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channel, mask=known, other=0.0).to(ACC)
    for tap in tl.static_range(WIDTH):
        values = newest.to(ACC)
        if tap < WIDTH - 1:
            stored = tl.load(window_ptr + tap * window_t, mask=known, other=0.0)
            values = stored.to(newest.dtype).to(ACC)
            if tap > 0:
                tl.store(window_ptr + (tap - 1) * window_t, stored, mask=known)
        weight = tl.load(weight_ptr + channel * WIDTH + tap, mask=known, other=0.0).to(ACC)
        total += values * weight
    if WIDTH > 1:
        to = window_ptr + (WIDTH - 2) * window_t
        tl.store(to, newest.to(window_ptr.dtype.element_ty), mask=known)
    tl.store(y_ptr + batch * channels + channel, silu(total).to(y_ptr.dtype.element_ty), mask=known)
