"""Telling NaN and infinity from numbers at the speed of memory."""

import numpy as np
import torch

# What is not finite has the largest bit patterns of either sign. So two maxima over the bits,
# taken as signed and as unsigned integers, find it: exact, vectorized, without a temporary copy
# and without torch's thread pool, whose idle threads would spin on the cores that hash.
_FIRST_NONFINITE = {
    torch.float64: 0x7FF0_0000_0000_0000,
    torch.float32: 0x7F80_0000,
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float8_e5m2: 0x7C,
    torch.float8_e4m3fn: 0x7F,  # has no infinity, and one NaN of either sign
}
"""The least bit pattern that is not finite, with its sign bit clear."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20  # bytes; the second maximum finds them in the processor's cache


def is_finite(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is free of NaN and infinity; True for integers and truth values."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return True
    first, size = _FIRST_NONFINITE[tensor.dtype], tensor.dtype.itemsize
    bits = tensor.contiguous().reshape(-1).view(_INTEGERS[size]).numpy()
    unsigned = np.dtype(f"u{size}")
    first_negative = first | 1 << (8 * size - 1)
    for start in range(0, len(bits), _CHUNK // size):
        chunk = bits[start : start + _CHUNK // size]
        if chunk.max() >= first or chunk.view(unsigned).max() >= first_negative:
            return False
    return True
