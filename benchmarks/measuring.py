"""What the benchmarks share: fair timing, the machine's own limits, and its description."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], object]


def interleaved(works: Mapping[str, Work], device: torch.device, rounds: int = 5) -> dict[str, Any]:
    """Time several pieces of work in turn, so that a noisy machine is as noisy to all of them.

    Args:
        works: what to run, by name; once unmeasured, then ``rounds`` times.
        device: what to wait for.
        rounds: how often.

    Returns:
        For each name ``median_s`` and ``spread``, the interquartile range as a share of it.
    """
    for work in works.values():
        _seconds(work, device)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(_seconds(work, device))
    result = {}
    for name, measured in seconds.items():
        low, median, high = statistics.quantiles(measured, n=4, method="inclusive")
        result[name] = {"median_s": median, "spread": (high - low) / median}
    return result


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large square matrix product, the best of a few."""
    size = 1536 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: a @ b, device) for _ in range(6))


def bandwidth(device: torch.device) -> float:
    """Return the bytes a second that a large copy reads and writes, the best of a few."""
    size = 1 << (26 if device.type == "cpu" else 30)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(_seconds(lambda: target.copy_(source), device) for _ in range(6))


def memory_now() -> int:
    """Return the bytes that this process holds."""
    return _status("VmRSS")


def memory_peak() -> int:
    """Return the most bytes that this process ever held.

    Not from ``getrusage``: that begins with the most that the process before it held.
    """
    return _status("VmHWM")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in ("hybridize", "torch", "transformers")},
    }


def _seconds(work: Work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        raise SystemExit("memory can be measured on Linux only")
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def accuracy(model: Any, subjects: tuple[str, ...] | None = None) -> float:
    """Return the share of an exam's questions that a model answers rightly.

    Args:
        model: a `hybridize.evals.ModelResult` of the ``mmlu`` task.
        subjects: which; all if None.
    """
    wanted = None if subjects is None else {f"mmlu_{subject}" for subject in subjects}
    found = [
        metric
        for metric in model.metrics
        if metric.metric == "acc"
        and not metric.is_group
        and (wanted is None or metric.task in wanted)
    ]
    return sum(m.value * m.questions for m in found) / sum(m.questions for m in found)
