"""The kernels of FP8: rounding to it with scales of any granularity, and the product by blocks."""

import triton
import triton.language as tl


@triton.jit
def _encode(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """Return the bits of the nearest FP8 number, ties to even, for float32 within its range.

    For devices that cannot convert. NaN becomes FP8's one NaN without a payload.
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Half of what is cut off, or a little less where that leaves an even number.
    CUT: tl.constexpr = 23 - MANTISSA
    normal = (size + ((1 << (CUT - 1)) - 1) + ((size >> CUT) & 1)) >> CUT
    normal -= (127 - BIAS) << MANTISSA
    # Below the least normal number all have one unit: that of float32 near this sum's first term.
    COARSE: tl.constexpr = 127 + 24 - BIAS - MANTISSA
    coarse = tl.full(x.shape, COARSE << 23, tl.int32)
    sum = size.to(tl.float32, bitcast=True) + coarse.to(tl.float32, bitcast=True)
    code = tl.where(size < (128 - BIAS) << 23, sum.to(tl.int32, bitcast=True) - coarse, normal)
    code = tl.where(size > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit(do_not_specialize=["x_m", "rows", "scale_m"])
def quantize(
    x_ptr, scale_ptr, values_ptr, x_m, x_r, rows, columns, scale_m, scale_r, scale_c,
    LARGEST: tl.constexpr, WHOLE: tl.constexpr, GIVEN: tl.constexpr, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write one tile of FP8 numbers, and its scale or its rows' scales unless they are given.

    From matrix to matrix are ``x_m`` rows, from row to row ``x_r`` elements.
    WHOLE: the tile has one scale, at the tile's own place; else each of its rows has one.
    """
    matrix = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    source = x_ptr + (matrix * x_m + row[:, None]) * x_r + column[None, :]
    x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    scale_ptr += matrix * scale_m + tl.program_id(1) * scale_c
    if WHOLE:
        scale_ptr += tl.program_id(0) * scale_r + tl.zeros((BLOCK_R,), tl.int32)
    else:
        scale_ptr += row * scale_r
    if GIVEN:
        scale = tl.load(scale_ptr, mask=row < rows, other=1.0)
    else:
        # Magnitudes compare as their bits do, and NaN is above all of them.
        most = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
        if WHOLE:
            most = tl.zeros((BLOCK_R,), tl.int32) + tl.max(most, 0)
        largest = most.to(tl.float32, bitcast=True)
        scale = tl.div_rn(largest, tl.full((BLOCK_R,), LARGEST, tl.float32))
        # Dividing by a subnormal scale would lose digits.
        least = tl.full((BLOCK_R,), 2.0**-126, tl.float32)
        scale = tl.where(largest == 0, 1.0, tl.where(scale < least, least, scale))
        first = tl.arange(0, BLOCK_R) == 0
        tl.store(scale_ptr, scale, mask=first if WHOLE else row < rows)
    y = tl.div_rn(x, tl.broadcast_to(scale[:, None], (BLOCK_R, BLOCK_C)))
    y = tl.where(y > LARGEST, LARGEST, tl.where(y < -LARGEST, -LARGEST, y))
    target = values_ptr + (matrix * rows + row[:, None]) * columns + column[None, :]
    if values_ptr.dtype.element_ty == tl.uint8:
        tl.store(target, _encode(y, MANTISSA, BIAS), mask=inside)
    else:
        tl.store(target, y.to(values_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def block_product(
    x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, y_ptr, rows, outs, columns,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write one tile of a linear layer whose operands have a scale for every ``TILE`` columns.

    A tile's columns are of one block of the weight, so that each step's products share a scale.
    They are added up outside of the tensor cores, whose own sums have fewer bits than float32.
    """
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    steps = tl.cdiv(columns, TILE)
    total = tl.zeros((BLOCK_M, TILE), tl.float32)
    for step in range(0, steps):
        column = step * TILE + tl.arange(0, TILE)
        known = column < columns
        x = tl.load(
            x_ptr + row[:, None] * columns + column[None, :],
            mask=(row < rows)[:, None] & known[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.load(
            weight_ptr + out[None, :].to(tl.int64) * columns + column[:, None],
            mask=(out < outs)[None, :] & known[:, None], other=0.0,
        )  # fmt: skip
        x_scale = tl.load(x_scale_ptr + row * steps + step, mask=row < rows, other=0.0)
        weight_scale = tl.load(weight_scale_ptr + tl.program_id(0) * steps + step)
        total += tl.dot(x, weight) * (x_scale * weight_scale)[:, None]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + out, mask=out < outs, other=0.0).to(tl.float32)[None, :]
    target = y_ptr + row[:, None] * outs + out[None, :]
    inside = (row < rows)[:, None] & (out < outs)[None, :]
    tl.store(target, total.to(y_ptr.dtype.element_ty), mask=inside)
