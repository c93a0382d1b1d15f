"""Convert, distill and measure a real model with several recipes, resumable over days.

The recipes are in `real_models_arms.py`: ours, that of "The Mamba in the Llama", and random blocks.
Each is trained for several numbers of tokens, and every result is compared with the original:

    python benchmarks/real_models.py --model DIR --work WORK \\
        --data valid.txt --data teacher --held-out test.txt --mmlu MMLU

The same command continues after an interruption of any kind, and skips what is in the results.
Several processes may run at the same time; each takes the runs that no other works on. With the
same options, ``--list`` shows what is left, ``--table`` prints the results, and ``--plot`` draws
them. ``--only ARM:SHARE:TOKENS`` restricts the runs, for example ``--only 'hybridize:25%:*'``.
"""

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from measuring import argument_parser, machine, matrix_rate
from real_models_arms import ARMS
from real_models_costs import measure_costs
from real_models_costs import table as table_of_costs
from real_models_jobs import (
    PARTS,
    SPEED,
    Estimate,
    Job,
    all_jobs,
    parse_counts,
    select,
    show_count,
)
from real_models_plot import draw
from real_models_scores import QualitySettings, mmlu, quality, speed
from real_models_store import ORIGINAL, Store, locked
from real_models_table import tables
from real_models_text import check_disjoint, excerpt, training_files
from real_models_training import Clock, TimeIsUp, TrainingSettings, Workspace, tokens_so_far

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.files import sha256_of
from hybridize.checkpoints.formats import read_config
from hybridize.console import console
from hybridize.data.sources import TEACHER
from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.model_spec import parameter_shapes
from hybridize.option_types import Count
from hybridize.output_files import write_atomically

METHOD = (
    "Every number of training tokens is a run of its own from the converted model, with distill's "
    "schedule of the learning rate for that number: linear warmup, then cosine decay to 2% of the "
    "peak. The tokens are those of all stages together. Runs share one text and its order; a run "
    "that is longer than the text repeats it. The teacher's most likely tokens at every position "
    "are stored once for all runs, as many as the setting cache_teacher says; the seconds of the "
    "training do not include this. Everything is measured in float32 on the written "
    "checkpoint, whose dtype is the original's."
)

_OPERATIONS_PER_PARAMETER = 8
"""Of a training step per token: forward and backward of the student, forward of the teacher."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argument_parser(__doc__)
    count = Count().convert
    add = result.add_argument
    add("--model", type=Path, required=True, help="checkpoint directory of the original")
    add("--work", type=Path, required=True, help="directory of the checkpoints and states")
    add("--name", help="name of the results; default: the model's directory name")
    add("--data", action="append", help="text to train on, or teacher; may be repeated")
    add("--data-tokens", type=count, default=1_000_000, help="maximum tokens of that text")
    add("--teacher-tokens", type=count, default=250_000, help="tokens that the teacher samples")
    add("--held-out", type=Path, help="text for KL and perplexity")
    add("--shares", default="50%,25%", help="shares of attention, separated by commas")
    add("--milestones", type=parse_counts, default=parse_counts("0,30k,100k,300k,1M"),
        help="training tokens, separated by commas")  # fmt: skip
    add("--seq-len", type=int, default=512, help="tokens per sequence")
    add("--batch-size", type=int, default=2, help="sequences per step")
    add("--validation-sequences", type=int, default=8, help="held out of the training text")
    add("--save-every", type=int, default=20, help="steps between saves of the training")
    add("--cache-teacher", type=int, default=64, metavar="K",
        help="teacher's predictions to store per token, once for all runs; 0: none")  # fmt: skip
    add("--kl-tokens", type=count, default=4096, help="held-out tokens for the KL")
    add("--perplexity-tokens", type=count, default=8192, help="held-out tokens for the perplexity")
    add("--recall", default="recall_needles_512,recall_needles_1024,recall_needles_2048",
        help="tasks of the recall curve, separated by commas")  # fmt: skip
    add("--recall-questions", type=int, default=48, help="questions of each of them")
    add("--mmlu", type=Path, help="directory of MMLU's CSV files; default: not measured")
    add("--mmlu-limit", type=int, default=20, help="questions per subject")
    add("--contexts", type=parse_counts, default=(2048, 8192, 32768),
        help="lengths at which the speed is measured, separated by commas")  # fmt: skip
    add("--parts", default=",".join(PARTS), help="kinds of work to do, separated by commas")
    add("--only", action="append", default=[], metavar="ARM:SHARE:TOKENS",
        help="do these runs only; * and ? match, missing parts are *; may be repeated")  # fmt: skip
    add("--time-limit", type=float, metavar="MINUTES", help="stop cleanly after this time")
    add("--threads", type=int, help="threads of torch")
    add("--device", default="cpu", help="device of the training and the measurements")
    add("--seed", type=int, default=0, help="random seed")
    action = result.add_mutually_exclusive_group()
    for name, text in (
        ("list", "show the runs, what is left of each, and the estimated hours"),
        ("table", "print the results as tables in Markdown"),
        ("plot", "draw the results as a PNG"),
        ("costs", "measure time and memory of every command on the model"),
    ):
        action.add_argument(f"--{name}", action="store_true", help=text)
    return result


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.name = options.name or options.model.resolve().name
    options.work = options.work.resolve() / options.name
    if options.threads:
        torch.set_num_threads(options.threads)
    path = options.output / f"real_models-{options.name}.json"
    store = Store(path, options.work)
    if options.table:
        print(tables(store.read()))
    elif options.plot:
        write_atomically(path.with_suffix(".png"), draw(store.read(), options.name))
        console.message(f"written: {path.with_suffix('.png')}")
    elif options.costs:
        print(table_of_costs(measure_costs_of(options)))
    elif options.list:
        list_jobs(options, store)
    else:
        try:
            Benchmark(options, store).run()
        except KeyboardInterrupt as stop:
            reason = "the time limit" if isinstance(stop, TimeIsUp) else "an interruption"
            raise SystemExit(f"stopped by {reason}; the same command continues") from None
        except (InputError, HybridizeError) as error:
            raise SystemExit(f"error: {error}") from error


def wanted(options: argparse.Namespace) -> tuple[list[Job], tuple[str, ...]]:
    """Return the jobs and the parts that the options name."""
    parts = tuple(part for part in options.parts.split(",") if part != "mmlu" or options.mmlu)
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--parts: unknown {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    return select(all_jobs(options.shares.split(","), options.milestones), options.only), parts


class Benchmark:
    """Does all jobs that are left."""

    def __init__(self, options: argparse.Namespace, store: Store) -> None:
        if not options.data or options.held_out is None:
            raise SystemExit("give the text to train on with --data, and another one to measure "
                             "on with --held-out")  # fmt: skip
        self._options, self._store = options, store
        self._clock = Clock(options.time_limit)
        self._jobs, self._parts = wanted(options)
        options.work.mkdir(parents=True, exist_ok=True)
        check_disjoint([each for each in options.data if each != TEACHER], options.held_out)
        store.check_settings(settings_of(options))
        store.update(lambda content: content.update(method=METHOD, machine=machine(
            torch.device(options.device))))  # fmt: skip

    def run(self) -> None:
        """Do one job after the other; skip those on which another process works."""
        for job in self._jobs:
            if not job.left(self._store.read(), self._parts):
                continue
            with locked(self._options.work / f"{_file_name(job)}.lock", wait=False) as obtained:
                if not obtained:
                    console.message(f"{job}: another process works on it")
                elif job.arm == SPEED:
                    self._measure_speed(job)
                else:
                    self._measure(job)
        console.message(f"done; results: {self._store.path}")

    def _measure(self, job: Job) -> None:
        original, options = self._options.model, self._options
        checkpoint = original
        if job.identity is not ORIGINAL:
            made = self._make(job)
            if made is None:
                return
            checkpoint = made
        quality_settings = self._quality
        functions: dict[str, Callable[[], dict[str, Any]]] = {
            "quality": lambda: quality(checkpoint, original, quality_settings),
            "mmlu": lambda: mmlu(checkpoint, options.mmlu, options.mmlu_limit, quality_settings),
        }
        for part in job.left(self._store.read(), self._parts):
            if part in functions:
                self._add(job, part, functions[part])

    def _make(self, job: Job) -> Path | None:
        """Convert and train; return the checkpoint, or None if it is not to be trained now."""
        workspace = Workspace(self._options.work, job.arm, job.share, self._training)
        checkpoint = workspace.checkpoint(job.tokens)
        if job.tokens and not checkpoint.exists() and "train" not in self._parts:
            console.message(f"{job}: not trained yet; add train to --parts")
            return None
        self._clock.check()
        conversion = workspace.convert()
        if "conversion" not in self._store.row(job.identity):
            self._store.add(job.identity, "conversion", conversion)
        if job.tokens and "train" in job.left(self._store.read(), PARTS):
            self._add(job, "train", lambda: workspace.train(job.tokens, self._clock))
        return checkpoint

    def _measure_speed(self, job: Job) -> None:
        workspace = Workspace(self._options.work, next(iter(ARMS)), job.share, self._training)
        self._clock.check()
        workspace.convert()
        options = self._options
        self._add(job, "speed", lambda: {"points": speed(
            options.model, workspace.checkpoint(0), options.contexts, options.device)})  # fmt: skip

    def _add(self, job: Job, part: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one part of a row and add it to the results."""
        # Unlike a training, a measurement cannot be continued.
        estimate = Estimate(self._store.read(), 1.0).hours(job, () if part == "train" else (part,))
        self._clock.check(3600 * estimate)
        console.message(f"{job}: {part}")
        started = time.perf_counter()
        value = measure()
        self._store.add(job.identity, part, value | {
            "total_seconds": time.perf_counter() - started,
            "threads": torch.get_num_threads(),
            "commit": _commit(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        })  # fmt: skip

    @cached_property
    def _training(self) -> TrainingSettings:
        options = self._options
        files = training_files(options.data, options.model, options.work, options.teacher_tokens,
                               options.seed, options.device)  # fmt: skip
        check_disjoint(files, options.held_out)
        return TrainingSettings(
            model=options.model,
            files=files,
            **{name: getattr(options, name) for name in (
                "data_tokens", "seq_len", "batch_size", "validation_sequences", "save_every",
                "cache_teacher", "seed", "device")},
        )  # fmt: skip

    @cached_property
    def _quality(self) -> QualitySettings:
        options = self._options
        tokens = max(options.kl_tokens, options.perplexity_tokens)
        text = excerpt(options.held_out, options.model, tokens, options.work / "held-out.txt")
        return QualitySettings(
            text=text,
            window=512,
            kl_tokens=options.kl_tokens,
            recall=tuple(filter(None, options.recall.split(","))),
            recall_questions=options.recall_questions,
            batch_size=8,
            device=options.device,
        )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options on which all rows depend, without paths of this machine."""
    names = ("seq_len", "batch_size", "validation_sequences", "data_tokens", "teacher_tokens",
             "cache_teacher", "kl_tokens", "perplexity_tokens", "recall_questions", "device",
             "seed")  # fmt: skip
    return {
        "model": options.model.resolve().name,
        "data": [source if source == TEACHER else _describe(source) for source in options.data],
        "held_out": _describe(options.held_out),
        "recall": options.recall.split(","),
        **{name: getattr(options, name) for name in names},
    }


def list_jobs(options: argparse.Namespace, store: Store) -> None:
    """Print all jobs, what is left of each, and the estimated hours."""
    jobs, parts = wanted(options)
    content = store.read()
    with CheckpointReader(options.model) as reader:
        shapes = parameter_shapes(read_config(reader)[1]).values()
    parameters = sum(torch.Size(shape).numel() for shape in shapes)
    operations = matrix_rate(torch.device("cpu"), torch.float32)
    estimate = Estimate(content, operations / (_OPERATIONS_PER_PARAMETER * parameters))
    rows, total = [], 0.0
    for job in jobs:
        left = job.left(content, parts)
        step = options.batch_size * options.seq_len
        trained = tokens_so_far(options.work, job.arm, job.share, job.tokens, step)
        hours = estimate.hours(job, left, trained)
        total += hours
        todo = ", ".join(left) or "done"
        if trained:
            todo = todo.replace("train", f"train ({trained / job.tokens:.0%} done)")
        rows.append((job.arm, job.share, show_count(job.tokens), todo,
                     f"{hours:.2f}" if left else ""))  # fmt: skip
    console.table(
        ["recipe", "attention", "tokens", "left", "hours"],
        rows,
        caption=f"{total:.1f} hours on {torch.get_num_threads()} threads. Measurements count once "
        "one of them was made.",
    )


def measure_costs_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure time and memory of every command, with the first file of the training text."""
    text = next((source for source in options.data or () if source != TEACHER), None)
    if text is None:
        raise SystemExit("--costs: give a text file with --data")
    return measure_costs(
        options.model.resolve(),
        options.work / "costs",
        Path(text).resolve(),
        mmlu=options.mmlu and options.mmlu.resolve(),
        output=options.output,
    )


def _describe(path: str | Path) -> dict[str, str]:
    return {"file": Path(path).name, "sha256": sha256_of(Path(path))}


def _file_name(job: Job) -> str:
    return str(replace(job, share=job.share.replace("%", "pct"))).replace(":", "-")


def _commit() -> str | None:
    """Return the commit of this repository, marked if files were changed since."""
    command = ["git", "-C", os.fspath(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return described.stdout.strip() or None


if __name__ == "__main__":
    main()
