"""Finding NaN and infinity at memory speed, without torch.

Among numbers of one sign, NaN and infinity have the largest bit patterns. So two maxima over the
bits find them: one over signed integers, one over unsigned integers. This is exact and vectorized.
It does not copy the data, and does not start torch's threads, which would compete with the hashing.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from hybridize.checkpoints.dtypes import dtype_name, itemsize

if TYPE_CHECKING:
    import torch

_FIRST_NONFINITE = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float8_e5m2": 0x7C,
    "float8_e4m3fn": 0x7F,  # it has no infinity, and one NaN per sign
}
"""The smallest bit pattern that is not finite, without its sign bit."""

_CHUNK = 1 << 20  # bytes; the second maximum then reads from the CPU's cache


def is_finite(tensor: "torch.Tensor") -> bool:
    """Return whether a tensor has neither NaN nor infinity; True for integers and booleans."""
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return bytes_are_finite(data, dtype_name(tensor.dtype))


def bytes_are_finite(data: "np.ndarray[Any, np.dtype[np.uint8]]", dtype: str) -> bool:
    """Return whether the numbers in a buffer have neither NaN nor infinity.

    Args:
        data: the buffer's bytes, contiguous.
        dtype: torch's name of the numbers' dtype.
    """
    dtype = "float32" if dtype == "complex64" else dtype
    first = _FIRST_NONFINITE.get(dtype)
    if first is None:
        return True
    size = itemsize(dtype)
    bits, unsigned = data.view(f"i{size}"), np.dtype(f"u{size}")
    first_negative = first | 1 << (8 * size - 1)
    for start in range(0, len(bits), _CHUNK // size):
        chunk = bits[start : start + _CHUNK // size]
        if chunk.max() >= first or chunk.view(unsigned).max() >= first_negative:
            return False
    return True
