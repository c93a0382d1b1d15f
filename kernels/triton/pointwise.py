"""Elementwise functions that several kernels share."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """Return the logistic function, without overflow for any ``x``."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1 / (1 + small), small / (1 + small))


@triton.jit
def silu(x):
    """Return ``x · sigmoid(x)``."""
    return x * sigmoid(x)


@triton.jit
def silu_grad(x):
    """Return the derivative of `silu`."""
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


@triton.jit
def softplus(x):
    """Return ``log(1 + exp(x))``, with full relative precision also for very negative ``x``."""
    small = tl.exp(-tl.abs(x))
    total = 1 + small
    # Kahan's log1p(small): the factor corrects for the digits that 1 + small has lost to rounding.
    log = tl.where(total == 1, small, tl.log(total) * (small / tl.where(total == 1, 1, total - 1)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def clamp(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Return ``x`` clamped to constants. As ordinary arguments they would be rounded to float32."""
    return tl.minimum(tl.maximum(x, tl.full((), LOW, x.dtype)), tl.full((), HIGH, x.dtype))
