"""Every operation beside its peers, in one run, with the machine's own floor.

    python benchmarks/kernels.py                        # this machine's processor
    python benchmarks/kernels.py --device cuda          # its GPU, in bfloat16
    python benchmarks/kernels.py --only ssd_scan --tokens 2048,8192

Peers: transformers' torch path (what its Mamba-2 models run without mamba-ssm), and mamba_ssm and
causal_conv1d where they import. The floor is the larger of the operations over the rate of a large
matrix product and the bytes over the bandwidth of a large copy, both measured in the same run.
Backward peaks are measured in a process each.
"""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import bandwidth, interleaved, machine, matrix_rate, memory_now, memory_peak

from hybridize import kernels
from hybridize.console import console

HEADS, HEAD_DIM, STATE, GROUPS, HIDDEN = 16, 64, 128, 1, 512


@dataclass
class Shape:
    """What the operations work on."""

    batch: int
    tokens: int
    device: torch.device
    dtype: torch.dtype

    def draw(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return random numbers that take a gradient."""
        made = torch.randn(*shape, device=self.device, dtype=dtype or self.dtype)
        return made.requires_grad_()


@dataclass
class Operation:
    """An operation on its operands.

    Attributes:
        inputs: the operands, all of which take gradients.
        works: by name, ours first: given the operands, the output.
        operations, bytes: the least that it has to compute and to move.
    """

    inputs: dict[str, torch.Tensor]
    works: dict[str, Callable[..., torch.Tensor]]
    operations: float
    bytes: float


def ssd_scan(shape: Shape) -> Operation:
    b, n = shape.batch, shape.tokens
    inputs = {
        "x": shape.draw(b, n, HEADS, HEAD_DIM),
        "dt": shape.draw(b, n, HEADS),
        "A": (-torch.rand(HEADS, device=shape.device) - 0.1).requires_grad_(),
        "B": shape.draw(b, n, GROUPS, STATE),
        "C": shape.draw(b, n, GROUPS, STATE),
        "D": shape.draw(HEADS, dtype=torch.float32),
        "dt_bias": shape.draw(HEADS, dtype=torch.float32),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.ssd_scan(**given)[0]

    def theirs(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        return mamba2_chunk_scan(
            x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
        )

    def mamba_ssm(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        return scan.mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
        )

    works = {"hybridize": ours, "transformers": theirs}
    if shape.device.type == "cuda" and _imports("mamba_ssm"):
        works["mamba_ssm"] = mamba_ssm
    # By chunks of Q tokens a token takes 2·Q·(N/heads + P) within the chunk, half of it masked, and
    # 4·N·P through the state; the best Q for this width is 64.
    chunk = 64
    within = 2 * chunk * (STATE * GROUPS / HEADS + HEAD_DIM) / 2
    operations = b * n * HEADS * (within + 4 * STATE * HEAD_DIM)
    return Operation(inputs, works, operations, _bytes(inputs, inputs["x"]))


def causal_conv1d(shape: Shape) -> Operation:
    channels = HEADS * HEAD_DIM + 2 * GROUPS * STATE
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, channels),
        "weight": shape.draw(channels, 4),
        "bias": shape.draw(channels),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.causal_conv1d(**given)[0]

    def theirs(x, weight, bias):  # type: ignore[no-untyped-def]
        y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=channels)
        return F.silu(y[..., : x.shape[1]]).transpose(1, 2)

    def compiled(x, weight, bias):  # type: ignore[no-untyped-def]
        module = importlib.import_module("causal_conv1d")
        return module.causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").mT

    works = {"hybridize": ours, "transformers": theirs}
    if shape.device.type == "cuda" and _imports("causal_conv1d"):
        works["causal_conv1d"] = compiled
    return Operation(inputs, works, 8 * inputs["x"].numel(), _bytes(inputs, inputs["x"]))


def gated_rms_norm(shape: Shape) -> Operation:
    width = HEADS * HEAD_DIM
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, width),
        "gate": shape.draw(shape.batch, shape.tokens, width),
        "weight": shape.draw(width),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.gated_rms_norm(**given, eps=1e-5, group_size=width)

    def theirs(x, gate, weight):  # type: ignore[no-untyped-def]
        wide = x.float() * F.silu(gate.float())
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return weight * wide.to(x.dtype)

    works = {"hybridize": ours, "transformers": theirs}
    return Operation(inputs, works, 10 * inputs["x"].numel(), _bytes(inputs, inputs["x"]))


def swiglu(shape: Shape) -> Operation:
    inputs = {name: shape.draw(shape.batch, shape.tokens, 4 * HIDDEN) for name in ("gate", "up")}
    works = {
        "hybridize": kernels.swiglu,
        "transformers": lambda gate, up: F.silu(gate) * up,
    }
    return Operation(inputs, works, 5 * inputs["up"].numel(), _bytes(inputs, inputs["up"]))


def linear(shape: Shape) -> Operation:
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, HIDDEN),
        "weight": (shape.draw(4 * HIDDEN, HIDDEN) * HIDDEN**-0.5).detach().requires_grad_(),
    }
    works = {"hybridize": kernels.linear, "torch": F.linear}
    operations = 2 * inputs["x"].numel() * 4 * HIDDEN
    return Operation(inputs, works, operations, _bytes(inputs, inputs["x"]))


def squared_relu_mlp(shape: Shape) -> Operation:
    width, small = 4 * HIDDEN, HIDDEN**-0.5
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, HIDDEN),
        "up": (shape.draw(width, HIDDEN) * small).detach().requires_grad_(),
        "down": (shape.draw(HIDDEN, width) * small).detach().requires_grad_(),
    }
    works = {
        "hybridize": kernels.squared_relu_mlp,
        "torch": lambda x, up, down: F.linear(F.relu(F.linear(x, up)).square(), down),
        "hybridize, layer by layer": lambda x, up, down: F.linear(
            kernels.squared_relu(F.linear(x, up)), down
        ),
    }
    operations = 4 * inputs["x"].numel() * width
    return Operation(inputs, works, operations, _bytes(inputs, inputs["x"]))


def linear_kl_divergence(shape: Shape) -> Operation:
    tokens, vocabulary = min(2048, shape.batch * shape.tokens), 32_000
    inputs = {
        "hidden": shape.draw(tokens, HIDDEN),
        "weight": (shape.draw(vocabulary, HIDDEN) * 0.05).detach().requires_grad_(),
        "target_hidden": shape.draw(tokens, HIDDEN).detach(),
        "target_weight": (shape.draw(vocabulary, HIDDEN) * 0.05).detach(),
    }

    def plain(hidden, weight, target_hidden, target_weight):  # type: ignore[no-untyped-def]
        wanted = (target_hidden @ target_weight.T).float().log_softmax(-1)
        got = (hidden @ weight.T).float().log_softmax(-1)
        return F.kl_div(got, wanted, reduction="batchmean", log_target=True)

    works = {"hybridize": kernels.linear_kl_divergence, "torch, all logits": plain}
    operations = 2 * 2 * tokens * vocabulary * HIDDEN
    return Operation(inputs, works, operations, _bytes(inputs))


def attention(shape: Shape) -> Operation:
    """Causal attention of the scan's width: what the scan takes the place of."""
    inputs = {
        name: shape.draw(shape.batch, HEADS, shape.tokens, HEAD_DIM) for name in ("q", "k", "v")
    }

    def sdpa(q, k, v):  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    operations = 2 * shape.batch * HEADS * shape.tokens**2 * HEAD_DIM
    return Operation(inputs, {"torch SDPA": sdpa}, operations, _bytes(inputs, inputs["q"]))


OPERATIONS: dict[str, Callable[[Shape], Operation]] = {
    operation.__name__: operation
    for operation in (
        ssd_scan,
        attention,
        causal_conv1d,
        gated_rms_norm,
        swiglu,
        linear,
        squared_relu_mlp,
        linear_kl_divergence,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", default="2048,8192", help="sequence lengths, comma separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="operations, comma separated; all if left out")
    parser.add_argument("--label", help="ends the names of the results' files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    lengths = [int(length) for length in options.tokens.split(",")]
    if options.peak:
        operation, work = options.peak.split("/")
        shape = Shape(options.batch, lengths[0], device, getattr(torch, name))
        print(_peak(operation, work, shape))
        return
    rate, moved = matrix_rate(device, getattr(torch, name)), bandwidth(device)
    console.message(f"matrix products: {rate / 1e9:,.0f} GFLOP/s; copies: {moved / 1e9:,.1f} GB/s")
    rows = []
    for operation in options.only.split(",") if options.only else OPERATIONS:
        for length in lengths if operation != "linear_kl_divergence" else lengths[:1]:
            console.message(f"{operation}, {length:,} tokens")
            shape = Shape(options.batch, length, device, getattr(torch, name))
            rows += measure(operation, shape, rate, moved, options)
    report(rows, rate, moved, name, device, options)


def measure(
    operation: str, shape: Shape, rate: float, moved: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time an operation and its peers, forward, and forward with backward."""
    case = OPERATIONS[operation](shape)
    plain = {name: value.detach() for name, value in case.inputs.items()}

    def forward(work: Callable[..., torch.Tensor]) -> None:
        with torch.no_grad():
            work(**plain)

    def both(work: Callable[..., torch.Tensor]) -> None:
        output = work(**case.inputs)
        wanted = [value for value in case.inputs.values() if value.requires_grad]
        torch.autograd.grad(output, wanted, torch.ones_like(output))

    rows = []
    for direction, run, factor in (("forward", forward, 1.0), ("forward+backward", both, 3.0)):
        timed = interleaved(
            {name: lambda run=run, work=work: run(work) for name, work in case.works.items()},
            shape.device,
            options.rounds,
        )
        floor = max(factor * case.operations / rate, factor * case.bytes / moved)
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
                rows[-1]["peak_bytes"] = _peak_of(operation, name, shape, options)
    return rows


def report(
    rows: list[dict[str, Any]],
    rate: float,
    moved: float,
    dtype: str,
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Print the table, draw the plot, and write the figures down."""
    described = machine(device)
    console.table(
        ["operation", "tokens", "", "implementation", "ms", "× floor", "× ours", "peak", "× ours"],
        [_row(row, _ours(row, rows)) for row in rows],
        caption=f"{described['device']}, {described['threads']} threads, {dtype}, batch "
        f"{options.batch}; {HEADS} heads × {HEAD_DIM}, state {STATE}, {GROUPS} group. Medians of "
        f"{options.rounds} rounds, in turn; peaks beyond the operands, with all gradients.",
    )
    result = {
        "benchmark": "kernels",
        "machine": described,
        "settings": {
            "dtype": dtype,
            "batch": options.batch,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "d_state": STATE,
            "groups": GROUPS,
            "rounds": options.rounds,
        },
        "matrix_flops_per_s": rate,
        "bandwidth_bytes_per_s": moved,
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
    """Draw how many times as long as ours every peer takes."""
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
    """Return our row beside a row; attention is put beside the scan."""
    operation = "ssd_scan" if row["operation"] == "attention" else row["operation"]
    wanted = (operation, row["tokens"], row["direction"], "hybridize")
    keys = ("operation", "tokens", "direction", "implementation")
    return next((other for other in rows if tuple(other[key] for key in keys) == wanted), None)


def _row(row: dict[str, Any], ours: dict[str, Any] | None) -> tuple[object, ...]:
    beside = ours is not None and ours is not row
    peak = row.get("peak_bytes")
    return (
        row["operation"],
        f"{row['tokens']:,}",
        row["direction"],
        row["implementation"],
        f"{row['median_s'] * 1e3:.1f} ±{row['spread'] / 2:.0%}",
        f"{row['median_s'] / row['floor_s']:.1f}",
        f"{row['median_s'] / ours['median_s']:.1f}" if ours is not None and beside else "",
        "" if peak is None else f"{peak / 2**20:,.0f} MiB",
        f"{peak / ours['peak_bytes']:.1f}" if peak and ours is not None and beside else "",
    )


def _peak_of(operation: str, work: str, shape: Shape, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, f"--peak={operation}/{work}", f"--device={shape.device}"]
    command += [f"--batch={shape.batch}", f"--tokens={shape.tokens}"]
    command += [f"--dtype={str(shape.dtype).removeprefix('torch.')}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _peak(operation: str, work: str, shape: Shape) -> int:
    """Return the most memory that forward and backward take beyond the operands."""

    def both(case: Operation) -> None:
        output = case.works[work](**case.inputs)
        wanted = [value for value in case.inputs.values() if value.requires_grad]
        torch.autograd.grad(output, wanted, torch.ones_like(output))

    both(OPERATIONS[operation](replace(shape, tokens=8)))  # what is loaded at the first call
    case = OPERATIONS[operation](shape)
    if shape.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both(case)
        return torch.cuda.max_memory_allocated() - before
    before = memory_now()
    both(case)
    return memory_peak() - before


def _bytes(inputs: dict[str, torch.Tensor], *outputs: torch.Tensor) -> float:
    return float(sum(tensor.nbytes for tensor in (*inputs.values(), *outputs)))


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
