"""The kernels of the activations: a program has one row and one block of its columns."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import silu, silu_grad


@triton.jit
def _row_and_columns(width, BLOCK: tl.constexpr):
    """Return the program's row, its columns, and the mask of those that exist."""
    o_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(0).to(tl.int64), o_c, o_c < width


@triton.jit
def swiglu_forward(
    gate, up, y, gate_stride, up_stride, width, BLOCK: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Write ``silu(gate) * up``."""
    i_row, o_c, m_c = _row_and_columns(width, BLOCK)
    b_gate = tl.load(gate + i_row * gate_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_up = tl.load(up + i_row * up_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_y = silu(b_gate) * b_up
    tl.store(y + i_row * width + o_c, b_y.to(y.dtype.element_ty), mask=m_c)


@triton.jit
def swiglu_backward(
    gate, up, dy, dgate, dup, gate_stride, up_stride, dy_stride, width,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the gradients of gate and up."""
    i_row, o_c, m_c = _row_and_columns(width, BLOCK)
    b_gate = tl.load(gate + i_row * gate_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_up = tl.load(up + i_row * up_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_dy = tl.load(dy + i_row * dy_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_dgate, b_dup = b_dy * b_up * silu_grad(b_gate), b_dy * silu(b_gate)
    o_out = i_row * width + o_c
    tl.store(dgate + o_out, b_dgate.to(dgate.dtype.element_ty), mask=m_c)
    tl.store(dup + o_out, b_dup.to(dup.dtype.element_ty), mask=m_c)


@triton.jit
def squared_relu_forward(x, y, x_stride, width, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Write the squares of the positive numbers; NaN stays NaN, since it is not below 0."""
    i_row, o_c, m_c = _row_and_columns(width, BLOCK)
    b_x = tl.load(x + i_row * x_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_y = tl.where(b_x <= 0, 0.0, b_x * b_x)
    tl.store(y + i_row * width + o_c, b_y.to(y.dtype.element_ty), mask=m_c)


@triton.jit
def squared_relu_backward(
    x, dy, dx, x_stride, dy_stride, width, BLOCK: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Write the gradient of x."""
    i_row, o_c, m_c = _row_and_columns(width, BLOCK)
    b_x = tl.load(x + i_row * x_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_dy = tl.load(dy + i_row * dy_stride + o_c, mask=m_c, other=0.0).to(ACC)
    b_dx = tl.where(b_x <= 0, 0.0, 2 * b_x * b_dy)
    tl.store(dx + i_row * width + o_c, b_dx.to(dx.dtype.element_ty), mask=m_c)
