"""Clocks for CPU and GPU."""

import time
from typing import Any, Protocol

import torch
from typing_extensions import override


class Timer(Protocol):
    """Measures time on a device."""

    def mark(self) -> Any:
        """Return a mark for the moment at which the device has finished all work so far."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two marks."""


class WallTimer(Timer):
    """The wall clock, for a CPU: work is finished when a call returns."""

    @override
    def mark(self) -> float:
        return time.perf_counter()

    @override
    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaTimer(Timer):
    """CUDA events, for a GPU: it records the time when it reaches a mark in its queue."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @override
    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @override
    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000  # elapsed_time is in milliseconds


def timer_for(device: torch.device) -> Timer:
    """Return the clock of a device."""
    return CudaTimer(device) if device.type == "cuda" else WallTimer()
