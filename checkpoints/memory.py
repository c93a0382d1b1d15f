"""Memory to read large tensors into."""

import mmap
from contextlib import suppress

import torch

_LARGE = 4 << 20  # bytes; below this a huge page, 2 MiB as a rule, would be mostly padding


def empty_bytes(count: int) -> torch.Tensor:
    """Return ``count`` uninitialized bytes as a tensor that owns them.

    Large ones lie in huge pages where the system has them. Filling fresh memory costs a page
    fault per page, and with pages of 4 KiB the faults take several times as long as the data.
    """
    if count < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=torch.uint8)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them: only slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
