"""The kernels of FP8: quantization, and the matrix product with block scales."""

import triton
import triton.language as tl


@triton.jit
def _encode(b_x, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """Return the bits of the nearest FP8 number, ties to even, for float32 within its range.

    For devices without an FP8 conversion. Every NaN becomes the same NaN.
    """
    b_bits = b_x.to(tl.int32, bitcast=True)
    b_abs = b_bits & 0x7FFFFFFF
    # Round to even: add half of the dropped range, minus one if the kept part is even; then drop.
    DROPPED: tl.constexpr = 23 - MANTISSA
    b_normal = (b_abs + ((1 << (DROPPED - 1)) - 1) + ((b_abs >> DROPPED) & 1)) >> DROPPED
    b_normal -= (127 - BIAS) << MANTISSA
    # Subnormal FP8 numbers are evenly spaced. Float32 numbers near 2**(MAGIC - 127) have the same
    # spacing, so adding that number rounds to a multiple of it.
    MAGIC: tl.constexpr = 127 + 24 - BIAS - MANTISSA
    b_magic = tl.full(b_x.shape, MAGIC << 23, tl.int32)
    b_sum = b_abs.to(tl.float32, bitcast=True) + b_magic.to(tl.float32, bitcast=True)
    b_subnormal = b_sum.to(tl.int32, bitcast=True) - b_magic
    b_code = tl.where(b_abs < (128 - BIAS) << 23, b_subnormal, b_normal)
    b_code = tl.where(b_abs > 0x7F800000, 0x7F, b_code)
    return (b_code | ((b_bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit(do_not_specialize=["x_m", "rows", "scale_m"])
def quantize(
    x, scales, values, x_m, x_r, rows, columns, scale_m, scale_r, scale_c,
    LARGEST: tl.constexpr, ONE_SCALE: tl.constexpr, GIVEN: tl.constexpr, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write one block of FP8 numbers, and its scales unless they are given.

    ``x_m`` is the distance between two matrices in rows, ``x_r`` between two rows in elements.
    ``ONE_SCALE``: the block has one scale, stored at the block's index; otherwise each row has one.
    """
    i_m = tl.program_id(2).to(tl.int64)
    o_r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_r = o_r < rows
    m_x = m_r[:, None] & (o_c < columns)[None, :]
    p_x = x + (i_m * x_m + o_r[:, None]) * x_r + o_c[None, :]
    b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    p_scale = scales + i_m * scale_m + tl.program_id(1) * scale_c
    if ONE_SCALE:
        p_scale += tl.program_id(0) * scale_r + tl.zeros((BR,), tl.int32)
    else:
        p_scale += o_r * scale_r
    if GIVEN:
        b_scale = tl.load(p_scale, mask=m_r, other=1.0)
    else:
        # As integers, the bits of magnitudes have the same order, and NaN is the largest.
        b_max = tl.max(b_x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
        if ONE_SCALE:
            b_max = tl.zeros((BR,), tl.int32) + tl.max(b_max, 0)
        b_largest = b_max.to(tl.float32, bitcast=True)
        b_scale = tl.div_rn(b_largest, tl.full((BR,), LARGEST, tl.float32))
        # Division by a subnormal scale would lose precision.
        b_least = tl.full((BR,), 2.0**-126, tl.float32)
        b_scale = tl.where(b_largest == 0, 1.0, tl.where(b_scale < b_least, b_least, b_scale))
        m_first = tl.arange(0, BR) == 0
        tl.store(p_scale, b_scale, mask=m_first if ONE_SCALE else m_r)
    b_y = tl.div_rn(b_x, tl.broadcast_to(b_scale[:, None], (BR, BC)))
    b_y = tl.where(b_y > LARGEST, LARGEST, tl.where(b_y < -LARGEST, -LARGEST, b_y))
    p_y = values + (i_m * rows + o_r[:, None]) * columns + o_c[None, :]
    if values.dtype.element_ty == tl.uint8:
        tl.store(p_y, _encode(b_y, MANTISSA, BIAS), mask=m_x)
    else:
        tl.store(p_y, b_y.to(values.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["rows"])
def block_scaled_matmul(
    x, x_scale, weight, weight_scale, bias, y, rows, out_features, in_features,
    TILE: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Write one block of a linear layer whose operands have a scale for every ``TILE`` inputs.

    The block's outputs share the scales of one block of the weight. Products are summed outside of
    the tensor cores, whose own sums have fewer bits than float32.
    """
    o_r = tl.program_id(1) * BM + tl.arange(0, BM).to(tl.int64)
    o_out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    m_r, m_out = o_r < rows, o_out < out_features
    tiles = tl.cdiv(in_features, TILE)
    b_y = tl.zeros((BM, TILE), tl.float32)
    for i_tile in range(0, tiles):
        o_in = i_tile * TILE + tl.arange(0, TILE)
        m_in = o_in < in_features
        p_x = x + o_r[:, None] * in_features + o_in[None, :]
        b_x = tl.load(p_x, mask=m_r[:, None] & m_in[None, :], other=0.0)
        p_weight = weight + o_out[None, :].to(tl.int64) * in_features + o_in[:, None]
        b_weight = tl.load(p_weight, mask=m_out[None, :] & m_in[:, None], other=0.0)
        b_x_scale = tl.load(x_scale + o_r * tiles + i_tile, mask=m_r, other=0.0)
        b_weight_scale = tl.load(weight_scale + tl.program_id(0) * tiles + i_tile)
        b_y += tl.dot(b_x, b_weight) * (b_x_scale * b_weight_scale)[:, None]
    if bias is not None:
        b_y += tl.load(bias + o_out, mask=m_out, other=0.0).to(tl.float32)[None, :]
    p_y = y + o_r[:, None] * out_features + o_out[None, :]
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_r[:, None] & m_out[None, :])
