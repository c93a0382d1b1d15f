"""How a device is asked what time it is."""

import time
from typing import Any, Protocol

import torch


class Timer(Protocol):
    """Takes the time on a device."""

    def mark(self) -> Any:
        """Remember the moment at which all that was asked of the device so far is done."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two marks."""


class WallTimer:
    """For a CPU, which has done what it was asked when it answers."""

    def mark(self) -> float:
        """See `Timer.mark`."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """See `Timer.seconds`."""
        return end - start


class CudaTimer:
    """For a GPU, which takes the time itself when it comes to a mark in its queue."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """See `Timer.mark`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See `Timer.seconds`."""
        end.synchronize()
        return start.elapsed_time(end) / 1000  # which counts milliseconds


def timer_for(device: torch.device) -> Timer:
    """Return what tells the time on a device."""
    return CudaTimer(device) if device.type == "cuda" else WallTimer()
