"""Compare the time and memory of every operation with its peers and with the machine's floor.

    python benchmarks/kernels.py                        # this machine's CPU
    python benchmarks/kernels.py --device cuda          # its GPU, in bfloat16
    python benchmarks/kernels.py --only ssd_scan --tokens 2048,8192

Peers are the torch code that transformers' Mamba-2 models run without mamba-ssm, and on a GPU also
mamba_ssm and causal_conv1d if they are installed. The floor is a lower bound of the time:
operations divided by the rate of a large matrix product, or bytes divided by the bandwidth of a
large copy, whichever is longer. The same run measures both rates. A separate process measures each
memory peak.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernels_operations import D_STATE, GROUPS, HEAD_DIM, HEADS, OPERATIONS, Shape
from measuring import bandwidth, interleaved, machine, matrix_rate, memory_now, memory_peak

from hybridize.console import console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", default="2048,8192", help="sequence lengths, comma separated")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, at least 2")
    parser.add_argument("--only", help="operations, comma separated; default: all")
    parser.add_argument("--label", help="suffix of the names of the result files")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results", help="result directory"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    lengths = [int(length) for length in options.tokens.split(",")]
    if options.peak:
        operation, implementation = options.peak.split("/")
        shape = Shape(options.batch, lengths[0], device, getattr(torch, name))
        print(_peak(operation, implementation, shape))
        return
    rate, copy_rate = matrix_rate(device, getattr(torch, name)), bandwidth(device)
    console.message(
        f"matrix products: {rate / 1e9:,.0f} GFLOP/s; copies: {copy_rate / 1e9:,.1f} GB/s"
    )
    rows = []
    for operation in options.only.split(",") if options.only else OPERATIONS:
        for length in lengths if operation != "linear_kl_divergence" else lengths[:1]:
            console.message(f"{operation}, {length:,} tokens")
            shape = Shape(options.batch, length, device, getattr(torch, name))
            rows += measure(operation, shape, rate, copy_rate, options)
    report(rows, rate, copy_rate, name, device, options)


def measure(
    operation: str, shape: Shape, rate: float, copy_rate: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time an operation and its peers: forward, and forward and backward."""
    case = OPERATIONS[operation](shape)
    rows = []
    for direction, run, factor in (
        ("forward", case.forward, 1.0),
        ("forward+backward", case.forward_and_backward, 3.0),
    ):
        functions = {name: partial(run, call) for name, call in case.implementations.items()}
        timed = interleaved(functions, shape.device, options.rounds)
        floor = max(factor * case.operations / rate, factor * case.bytes / copy_rate)
        for name, figures in timed.items():
            rows.append(
                {
                    "operation": operation,
                    "tokens": shape.tokens,
                    "direction": direction,
                    "implementation": name,
                    **figures,
                    "floor_s": floor,
                }
            )
            if direction == "forward+backward":
                rows[-1]["peak_bytes"] = _peak_in_new_process(operation, name, shape)
    return rows


def report(
    rows: list[dict[str, Any]],
    rate: float,
    copy_rate: float,
    dtype: str,
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Print the table, and write the plot and the JSON file."""
    described = machine(device)
    console.table(
        ["operation", "tokens", "", "implementation", "ms", "× floor", "× ours", "peak", "× ours"],
        [_row(row, _ours(row, rows)) for row in rows],
        caption=f"{described['device']}, {described['threads']} threads, {dtype}, batch "
        f"{options.batch}; {HEADS} heads × {HEAD_DIM}, state {D_STATE}, {GROUPS} group. Medians of "
        f"{options.rounds} interleaved rounds; peaks beyond the operands, with all gradients.",
    )
    result = {
        "benchmark": "kernels",
        "machine": described,
        "settings": {
            "dtype": dtype,
            "batch": options.batch,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "d_state": D_STATE,
            "groups": GROUPS,
            "rounds": options.rounds,
        },
        "matrix_flops_per_s": rate,
        "bandwidth_bytes_per_s": copy_rate,
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = (
        options.output / f"{'-'.join(filter(None, ['kernels', device.type, options.label]))}.json"
    )
    path.write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, described["device"], path.with_suffix(".png"))
    console.message(f"written: {path} and {path.with_suffix('.png').name}")


def draw(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """Draw each peer's time as a multiple of ours."""
    from matplotlib.figure import Figure

    peers = [(row, ours) for row in rows if (ours := _ours(row, rows)) not in (None, row)]
    labels = [
        f"{row['operation']}, {row['tokens']:,}\n{row['direction']}, {row['implementation']}"
        for row, _ in peers
    ]
    figure = Figure(figsize=(8, 0.5 * len(peers) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        labels, [row["median_s"] / ours["median_s"] for row, ours in peers], color="#2a6f97"
    )
    axes.bar_label(bars, fmt="%.1f ×", padding=3, fontsize=8)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("time, as a multiple of hybridize's")
    axes.set_title(f"Peers' time on {device}")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=130)


def _ours(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return our row for the same measurement; attention is compared with our scan."""
    operation = "ssd_scan" if row["operation"] == "attention" else row["operation"]
    key = (operation, row["tokens"], row["direction"], "hybridize")
    columns = ("operation", "tokens", "direction", "implementation")
    return next((other for other in rows if tuple(other[c] for c in columns) == key), None)


def _row(row: dict[str, Any], ours: dict[str, Any] | None) -> tuple[object, ...]:
    is_peer = ours is not None and ours is not row
    peak = row.get("peak_bytes")
    return (
        row["operation"],
        f"{row['tokens']:,}",
        row["direction"],
        row["implementation"],
        f"{row['median_s'] * 1e3:.1f} ±{row['spread'] / 2:.0%}",
        f"{row['median_s'] / row['floor_s']:.1f}",
        f"{row['median_s'] / ours['median_s']:.1f}" if ours is not None and is_peer else "",
        "" if peak is None else f"{peak / 2**20:,.0f} MiB",
        f"{peak / ours['peak_bytes']:.1f}" if peak and ours is not None and is_peer else "",
    )


def _peak_in_new_process(operation: str, implementation: str, shape: Shape) -> int:
    """Run this script with the hidden option ``--peak``, and return the bytes that it prints."""
    command = [sys.executable, __file__, f"--peak={operation}/{implementation}"]
    command += [f"--device={shape.device}", f"--batch={shape.batch}", f"--tokens={shape.tokens}"]
    command += [f"--dtype={str(shape.dtype).removeprefix('torch.')}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _peak(operation: str, implementation: str, shape: Shape) -> int:
    """Return the peak memory of forward and backward beyond the operands, in bytes."""
    small = OPERATIONS[operation](replace(shape, tokens=8))
    small.forward_and_backward(small.implementations[implementation])  # loads libraries
    case = OPERATIONS[operation](shape)
    on_cuda = shape.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_cuda else memory_now()
    case.forward_and_backward(case.implementations[implementation])
    return (torch.cuda.max_memory_allocated() if on_cuda else memory_peak()) - before


if __name__ == "__main__":
    main()
