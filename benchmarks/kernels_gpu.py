"""Compare the Triton kernels with their peers on this machine's GPU, at the size of an 8B hybrid.

    benchmarks/kernels_gpu.sh                    # correctness first, then this
    python benchmarks/kernels_gpu.py --only ssd_scan,ssd_step

Peers are plain torch, and mamba_ssm, causal_conv1d and flash-linear-attention if they are
installed. Their outputs are compared with ours. The floor is a lower bound of the time: operations
divided by the rate of a large matrix product, or bytes divided by the bandwidth of a large copy,
whichever is longer. The same run measures both rates. ``--tiny`` checks this script at toy size,
also in Triton's interpreter.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernels_gpu_operations import OPERATIONS, Sizes
from kernels_peers import Case
from measuring import bandwidth, machine, matrix_rate

from hybridize.console import console

HYBRID_8B = Sizes(
    batch=8, tokens=4096, heads=128, head_dim=64, d_state=128, groups=8, hidden=4096,
    vocabulary=128_256, decoding_batch=256, dtype=torch.bfloat16,
)  # fmt: skip
TINY = Sizes(
    batch=1, tokens=40, heads=4, head_dim=16, d_state=16, groups=2, hidden=32,
    vocabulary=100, decoding_batch=2, dtype=torch.float32,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="operations, comma separated; default: all")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds, at least 2")
    parser.add_argument("--tiny", action="store_true", help="check this script at toy size")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results", help="result directory"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("error: there is no CUDA device; benchmarks/kernels.py measures the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ["HYBRIDIZE_KERNELS"] = "triton"
    sizes = TINY if options.tiny else HYBRID_8B
    rate, copy_rate = matrix_rate(device, sizes.dtype), bandwidth(device)
    console.message(
        f"matrix products: {rate / 1e12:,.1f} TFLOP/s; copies: {copy_rate / 1e9:,.0f} GB/s"
    )
    rows = []
    for name in options.only.split(",") if options.only else OPERATIONS:
        case = OPERATIONS[name](sizes, device)
        rows += measure(name, case, device, rate, copy_rate, options.rounds)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report(rows, rate, copy_rate, sizes, device, options)


def measure(
    name: str, case: Case, device: torch.device, rate: float, copy_rate: float, rounds: int
) -> list[dict[str, Any]]:
    """Time an operation and its peers: forward, and forward and backward if it has a gradient."""
    rows = []
    directions = [
        ("forward", case.forward, 1.0),
        ("forward+backward", case.forward_and_backward, 3.0),
    ]
    for direction, call, factor in directions if case.differentiable else directions[:1]:
        runs, ours = {}, None
        for peer, implementation in case.implementations.items():
            run = partial(call, implementation)
            started = time.perf_counter()
            try:
                output = _finished(run, device)
            except Exception as error:  # a peer may fail, our own kernels may not
                if ours is None:
                    raise
                console.message(f"{name}, {peer}: skipped, {type(error).__name__}: {error}")
                continue
            row = {
                "operation": name,
                "direction": direction,
                "implementation": peer,
                "first_call_s": time.perf_counter() - started,
                "floor_s": max(factor * case.operations / rate, factor * case.bytes / copy_rate),
            }
            if ours is None:
                ours = output
            row["differs_from_ours"] = float(
                (output.double() - ours.double()).norm() / ours.double().norm()
            )
            row["peak_bytes"] = _peak(run, device)
            runs[peer] = (run, row)
            rows.append(row)
        seconds: dict[str, list[float]] = {peer: [] for peer in runs}
        for _ in range(rounds):  # interleaved, so that a changing clock rate affects all equally
            for peer, (run, _) in runs.items():
                seconds[peer].append(_seconds(run, device))
        for peer, (_, row) in runs.items():
            low, median, high = statistics.quantiles(seconds[peer], n=4, method="inclusive")
            row |= {"median_s": median, "spread": (high - low) / median}
        console.message(f"{name}, {direction}: {', '.join(runs)}")
    return rows


def _finished(run: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return a copy of the result, after the device has computed it."""
    output = run().clone()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return output


def _peak(run: Callable[[], Any], device: torch.device) -> int | None:
    """Return the peak memory of a run beyond its operands, in bytes."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Time a run with GPU events, which exclude the CPU time of the launch."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def report(
    rows: list[dict[str, Any]],
    rate: float,
    copy_rate: float,
    sizes: Sizes,
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Print the table, and write the plot and the JSON file, named after the device."""
    from kernels import draw

    for row in rows:
        row["tokens"] = sizes.tokens
    described = machine(device)
    console.table(
        ["operation", "", "implementation", "ms", "× floor", "× ours", "peak", "differs", "first"],
        [_row(row, rows) for row in rows],
        caption=f"{described['device']}, {sizes}. Medians of {options.rounds} interleaved "
        "rounds; peaks beyond the operands; first calls in seconds, with compilation.",
    )
    result = {
        "benchmark": "kernels_gpu",
        "machine": described,
        "settings": {"sizes": str(sizes), "rounds": options.rounds},
        "matrix_flops_per_s": rate,
        "bandwidth_bytes_per_s": copy_rate,
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", described["device"]).strip("-")
    path = options.output / f"kernels-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, described["device"], path.with_suffix(".png"))
    console.message(f"written: {path} and {path.with_suffix('.png').name}")


def _row(row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[object, ...]:
    keys = ("operation", "direction")
    ours = next(other for other in rows if all(other[key] == row[key] for key in keys))
    peak = row["peak_bytes"]
    return (
        row["operation"],
        row["direction"],
        row["implementation"],
        f"{row['median_s'] * 1e3:.3f} ±{row['spread'] / 2:.0%}",
        f"{row['median_s'] / row['floor_s']:.1f}",
        "" if ours is row else f"{row['median_s'] / ours['median_s']:.2f}",
        "" if peak is None else f"{peak / 2**20:,.0f} MiB",
        "" if ours is row else f"{row['differs_from_ours']:.1e}",
        f"{row['first_call_s']:.1f}",
    )


if __name__ == "__main__":
    main()
