"""Helpers of the benchmarks: arguments, alternating timing, limits of the machine, and results."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hybridize.console import console
from hybridize.evals.bench.machine import processor_name

Function = Callable[[], object]


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser with ``--output``, described by the first line of a benchmark's docstring."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    results = Path(__file__).parent / "results"
    parser.add_argument("--output", type=Path, default=results, help="directory of the results")
    return parser


def write_result(directory: Path, name: str, result: dict[str, Any]) -> Path:
    """Write a result to ``directory/name.json``; return that path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.message(f"written: {path}")
    return path


def interleaved(
    functions: Mapping[str, Function], device: torch.device, rounds: int = 5
) -> dict[str, Any]:
    """Time several functions alternately, so that other load affects all of them equally.

    Args:
        functions: the functions by name; each runs once as a warm-up and then ``rounds`` times.
        device: the device that they run on.
        rounds: the number of measured rounds.

    Returns:
        For each name ``median_s`` and ``spread``, the interquartile range relative to the median.
    """
    for function in functions.values():
        _seconds(function, device)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(_seconds(function, device))
    result = {}
    for name, measured in seconds.items():
        low, median, high = statistics.quantiles(measured, n=4, method="inclusive")
        result[name] = {"median_s": median, "spread": (high - low) / median}
    return result


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of a large matrix product in several runs, in operations per second."""
    size = 1536 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: a @ b, device) for _ in range(6))


def bandwidth(device: torch.device) -> float:
    """Return the best bandwidth of a large copy in several runs, in bytes per second."""
    size = 1 << (26 if device.type == "cpu" else 30)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(_seconds(lambda: target.copy_(source), device) for _ in range(6))


def memory_now() -> int:
    """Return the resident memory of this process in bytes (Linux only)."""
    return _status("VmRSS")


def memory_peak() -> int:
    """Return the peak resident memory of this process in bytes (Linux only).

    The value of ``getrusage`` would include the peak of the parent process.
    """
    return _status("VmHWM")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine of a benchmark."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in ("hybridize", "torch", "transformers")},
    }


def _seconds(function: Function, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        raise SystemExit("memory can be measured on Linux only")
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def accuracy(model: Any, subjects: tuple[str, ...] | None = None) -> float:
    """Return the accuracy of a model on an exam, from 0 to 1.

    Args:
        model: a `hybridize.evals.results.ModelResult` of the task ``mmlu`` with a local exam.
        subjects: the subjects that count; all if None.
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
