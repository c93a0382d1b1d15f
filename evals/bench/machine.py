"""Which machine a figure comes from, and how much of its memory a run takes."""

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the processor, its cores, the threads in use, the GPU, and the versions that matter.

    No name of the machine and no path is part of it.
    """
    import transformers

    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if hasattr(os, "getloadavg"):
        described["load_average"] = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class PeakMemory:
    """Measures the most memory that is taken above what was taken at the start.

    On a GPU torch's allocator counts. On a CPU the kernel keeps the highest resident memory of
    the process, which Linux lets a process reset; elsewhere there is no figure.
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
            _CLEAR.write_text("5", "ascii")  # the highest resident memory becomes today's
        except OSError:
            return
        self._start = _resident("VmRSS")

    def stop(self) -> int | None:
        """Return the bytes above the start; None where the system does not tell."""
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
    """Hand freed memory back to the system, so that taking it again shows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
