"""The peak memory of a run."""

import ctypes
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures the peak of the memory in use, relative to its value at the start.

    On a GPU, it is the peak that torch's allocator reports. On a CPU, it is the peak resident
    memory of the process. Only Linux lets a process reset that peak; other systems give no value.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: int | None = None

    def start(self) -> None:
        """Begin to measure."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return
        try:
            _release_free_memory()
            _CLEAR.write_text("5", "ascii")  # resets the peak to the current resident memory
        except OSError:
            return
        self._start = _resident("VmRSS")

    def stop(self) -> int | None:
        """Return the peak in bytes above the start; None where the system gives no value."""
        if self._start is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._start
        highest = _resident("VmHWM")
        return None if highest is None else max(0, highest - self._start)


def _resident(field: str) -> int | None:
    for line in _STATUS.read_text("ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _release_free_memory() -> None:
    """Return freed memory to the system, so that allocating it again counts."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
