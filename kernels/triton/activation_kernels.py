"""The kernels of the activations: a program has a part of one row."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import silu, silu_slope


@triton.jit
def _place(width, BLOCK: tl.constexpr):
    """Return the program's row and columns, and which of those there are."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(0).to(tl.int64), column, column < width


@triton.jit
def swiglu_forward(
    gate_ptr, up_ptr, y_ptr, gate_row, up_row, width, BLOCK: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Write ``silu(gate) * up``."""
    row, column, inside = _place(width, BLOCK)
    gate = tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0).to(ACC)
    up = tl.load(up_ptr + row * up_row + column, mask=inside, other=0.0).to(ACC)
    y = silu(gate) * up
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(
    gate_ptr, up_ptr, dy_ptr, dgate_ptr, dup_ptr, gate_row, up_row, dy_row, width,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write both gradients."""
    row, column, inside = _place(width, BLOCK)
    gate = tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0).to(ACC)
    up = tl.load(up_ptr + row * up_row + column, mask=inside, other=0.0).to(ACC)
    dy = tl.load(dy_ptr + row * dy_row + column, mask=inside, other=0.0).to(ACC)
    dgate, dup = dy * up * silu_slope(gate), dy * silu(gate)
    place = row * width + column
    tl.store(dgate_ptr + place, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + place, dup.to(dup_ptr.dtype.element_ty), mask=inside)


@triton.jit
def squared_relu_forward(x_ptr, y_ptr, x_row, width, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Write the squares of what is positive; NaN, which is not below 0, stays."""
    row, column, inside = _place(width, BLOCK)
    x = tl.load(x_ptr + row * x_row + column, mask=inside, other=0.0).to(ACC)
    y = tl.where(x <= 0, 0.0, x * x)
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def squared_relu_backward(
    x_ptr, dy_ptr, dx_ptr, x_row, dy_row, width, BLOCK: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Write the gradient."""
    row, column, inside = _place(width, BLOCK)
    x = tl.load(x_ptr + row * x_row + column, mask=inside, other=0.0).to(ACC)
    dy = tl.load(dy_ptr + row * dy_row + column, mask=inside, other=0.0).to(ACC)
    dx = tl.where(x <= 0, 0.0, 2 * x * dy)
    tl.store(dx_ptr + row * width + column, dx.to(dx_ptr.dtype.element_ty), mask=inside)
