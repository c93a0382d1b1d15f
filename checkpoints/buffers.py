"""Memory that large tensors are read into."""

import mmap
from contextlib import suppress
from typing import Any

import numpy as np

_LARGE = 4 << 20  # bytes; smaller buffers would waste most of a huge page, which is usually 2 MiB


def empty_bytes(count: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return an array of ``count`` uninitialized bytes.

    Large arrays use huge pages, if the system has them. Every page of new memory costs a page
    fault; with pages of 4 KiB, the faults take several times as long as reading the data.
    """
    if count < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(count, dtype=np.uint8)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # kernels without huge pages are only slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)
