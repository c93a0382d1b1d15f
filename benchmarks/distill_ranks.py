"""Measure the memory of distillation in one and in two processes, phase by phase.

Writes a random Llama, converts it, trains for a few steps with ``--train all``, and resumes:

    python benchmarks/distill_ranks.py

A phase's figure is the peak of the process that needs most, above its memory before the models are
loaded. The same run with tiny models has imported everything by then. malloc returns freed blocks
to the system at once, because otherwise the figures would contain what it keeps for later.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from distill_memory import prepare
from measuring import argument_parser, machine, memory_now, memory_peak, write_result

from hybridize import distill
from hybridize.compress.distill.pipeline import DistillPipeline
from hybridize.compress.distill.saved_states import SavedStates
from hybridize.compress.distill.trainer import Trainer
from hybridize.console import console

STEPS = 4
PHASES = {
    "load": "loading both models",
    "between": "between steps",
    "step": "during steps",
    "save": "saving the state",
    "write": "writing the output",
    "resume": "loading a saved state",
}
MIB = 1 << 20


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size")
    parser.add_argument("--layers", type=int, default=12, help="number of layers")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="vocabulary size")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--batch-size", type=int, default=2, help="sequences per step")
    parser.add_argument("--dtype", default="float32", help="dtype of the computation")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        tiny = {"folder": options.folder / "tiny", "hidden": 64, "layers": 4}
        prepare(argparse.Namespace(**vars(options) | tiny))
        report({count: _run(count, options) for count in (1, 2)}, options)


def work(options: argparse.Namespace) -> None:
    """Distill in this process, and write its peaks to a file."""
    folder = options.worker
    arguments = _arguments(options)
    distill(folder / "tiny" / "student", folder / "tiny" / "distilled", **arguments("tiny"))
    peaks, baseline = dict.fromkeys(PHASES, 0), list[int]()

    def measured(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not baseline:
                gc.collect()
                baseline.append(memory_now())
            if phase == "step":
                peaks["between"] = max(peaks["between"], memory_now() - baseline[0])
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            try:
                return function(*arguments, **keywords)
            finally:
                peaks[phase] = max(peaks[phase], memory_peak() - baseline[0])

        return call

    DistillPipeline._load_pair = measured(DistillPipeline._load_pair, "load")  # type: ignore[method-assign]
    DistillPipeline._write = measured(DistillPipeline._write, "write")  # type: ignore[method-assign]
    Trainer._train_step = measured(Trainer._train_step, "step")  # type: ignore[method-assign]
    save = measured(SavedStates.save, "save")

    def save_and_stop(*values: Any) -> None:
        save(*values)
        raise KeyboardInterrupt

    SavedStates.save = save_and_stop  # type: ignore[method-assign]
    with suppress(KeyboardInterrupt):
        distill(folder / "student", folder / "distilled", **arguments("."))
    gc.collect()  # the models of the interrupted run
    SavedStates.save = save  # type: ignore[method-assign]
    SavedStates.load = measured(SavedStates.load, "resume")  # type: ignore[method-assign]
    distill(folder / "student", folder / "distilled", resume=True, **arguments("."))
    rank = os.environ.get("RANK", "0")
    (folder / f"peaks-{rank}.json").write_text(json.dumps(peaks))


def _arguments(options: argparse.Namespace) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns the arguments of `distill` for the models in a folder."""
    return lambda folder: {
        "teacher": options.worker / folder / "teacher",
        "data": (str(options.worker / folder / "text.txt"),),
        "stages": ("kl",),
        "train": "all",
        "tokens": STEPS * options.batch_size * options.seq_len,
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "validation_sequences": options.batch_size,
        "save_every": 2,
        "dtype": options.dtype,
        "device": "cpu",
    }


def report(peaks: dict[int, dict[str, int]], options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    console.table(
        ["memory of a process", *(f"{count} process(es)" for count in peaks), "ratio"],
        [
            (
                title,
                *(f"{peaks[count][phase] / MIB:,.0f} MiB" for count in peaks),
                f"{peaks[2][phase] / peaks[1][phase]:.2f} ×",
            )
            for phase, title in PHASES.items()
        ],
        caption=f"A Llama with {options.layers} layers of width {options.hidden} and "
        f"{options.vocabulary:,} tokens, a quarter of its attention kept, --train all, in "
        f"{options.dtype}. Batches of {options.batch_size} × {options.seq_len} tokens.",
    )
    settings = ("hidden", "layers", "vocabulary", "seq_len", "batch_size", "dtype")
    result = {
        "benchmark": "distill_ranks",
        "machine": machine(torch.device("cpu")),
        "settings": {name: getattr(options, name) for name in settings},
        "peak_bytes": {str(count): phases for count, phases in peaks.items()},
    }
    write_result(options.output, f"distill_ranks-{options.dtype}", result)


def _run(count: int, options: argparse.Namespace) -> dict[str, int]:
    """Return the largest peak of each phase in ``count`` processes."""
    console.message(f"{count} process(es)")
    values = ("hidden", "layers", "vocabulary", "seq_len", "batch_size", "dtype")
    own = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in values]
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [*start, __file__, f"--worker={options.folder}", *own]
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    subprocess.run(command, check=True, env={**os.environ, **environment})
    for name in ("distilled", "tiny/distilled"):
        subprocess.run(["rm", "-rf", options.folder / name], check=True)
    found = [json.loads(path.read_text()) for path in options.folder.glob("peaks-*.json")]
    for path in options.folder.glob("peaks-*.json"):
        path.unlink()
    return {phase: max(peaks[phase] for peaks in found) for phase in PHASES}


if __name__ == "__main__":
    main()
