"""Convert and train for `real_models.py`, in working directories from which a run continues."""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from measuring import memory_peak
from real_models_arms import ARMS, TEXT, Arm
from real_models_store import locked

from hybridize import convert, distill
from hybridize.checkpoints.provenance import read_provenance
from hybridize.compress.distill.distributed import ALONE
from hybridize.compress.distill.saved_states import SavedStates
from hybridize.console import console
from hybridize.evals.bench.peak_memory import PeakMemory
from hybridize.output_files import write_atomically

_NEVER = 10**9  # steps

_LOOK_EVERY = 1.0
"""Seconds between two looks for a save after the time limit; so much training can be lost."""


class TimeIsUp(KeyboardInterrupt):
    """The time limit has passed, or the next task would end after it. All work is saved."""


@dataclass(frozen=True)
class TrainingSettings:
    """What all runs have in common.

    Attributes:
        model: the directory of the original.
        files: the files of the training text, see `real_models_text.training_files`.
        data_tokens: maximum number of tokens of that text. All runs use the same text.
        seq_len, batch_size: tokens per sequence, and sequences per step.
        validation_sequences: sequences of the training text that are held out.
        save_every: steps between saves.
        cache_teacher: the number of the teacher's predictions per token that are stored, once for
            all runs; 0 runs the teacher in every step.
        seed: random seed.
        device: where to train.
    """

    model: Path
    files: tuple[str, ...]
    data_tokens: int
    seq_len: int
    batch_size: int
    validation_sequences: int
    save_every: int
    cache_teacher: int
    seed: int
    device: str


class Clock:
    """The time limit of this process.

    Args:
        minutes: the limit; None for none.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def check(self, seconds: float = 0.0) -> None:
        """Raise `TimeIsUp` if a task of this length would end after the limit."""
        if self._end is not None and time.monotonic() + seconds >= self._end:
            raise TimeIsUp

    @contextmanager
    def stops_after_save(self, look: Callable[[], object]) -> Iterator[None]:
        """Raise `TimeIsUp` inside the block, at the first save after the limit.

        Args:
            look: returns something that changes with every complete save.
        """
        if self._end is None:
            yield
            return
        looks: list[object] = []

        def check(_number: int, _frame: FrameType | None) -> None:
            looks.append(look())
            if looks[-1] != looks[0]:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise TimeIsUp

        before = signal.signal(signal.SIGALRM, check)
        first_look = max(_LOOK_EVERY, self._end - time.monotonic())
        signal.setitimer(signal.ITIMER_REAL, first_look, _LOOK_EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Workspace:
    """The directories of one arm with one share of attention.

    Args:
        work: the user's directory.
        name: the arm's name.
        share: the share of attention that is kept, such as ``25%``.
        settings: what all runs have in common.
    """

    def __init__(self, work: Path, name: str, share: str, settings: TrainingSettings) -> None:
        self._work, self.name, self.share, self._settings = work, name, share, settings
        self.arm: Arm = ARMS[name]
        text = json.dumps([self.arm.recipe(), settings.files, settings.seed])
        key = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.directory = work / f"{_folder(name, share)}-{key}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._cache = work / "cache"

    def checkpoint(self, tokens: int) -> Path:
        """Return the directory of the checkpoint after this many training tokens."""
        return self.directory / ("converted" if tokens == 0 else f"trained-{tokens}")

    def convert(self) -> dict[str, Any]:
        """Convert the model if that is not done; return the figures of the conversion."""
        output = self.checkpoint(0)
        record = output.with_suffix(".json")
        with locked(self.directory / "convert.lock"):
            if not record.exists():  # it is written last
                figures = self._convert(output)
                write_atomically(record, json.dumps(figures, indent=1))
        figures = json.loads(record.read_text("utf-8"))
        return figures

    def _convert(self, output: Path) -> dict[str, Any]:
        options = dict(self.arm.convert)
        if options.get("calibration") == TEXT:
            options["calibration"] = self._settings.files[0]
        if self.arm.layers_of is None:
            options["attention"] = self.share
        else:
            other = Workspace(self._work, self.arm.layers_of, self.share, self._settings)
            options["keep"] = tuple(other.convert()["kept"])
        options |= {"seed": self._settings.seed, "device": self._settings.device}
        console.message(f"converting: {self.name}, {self.share} of attention")
        result, figures = _measured(
            lambda: convert(self._settings.model, output, force=True, **options)
        )
        return {
            "kept": list(result.kept),
            "layout": result.layout_after,
            "parameters": result.parameters_after,
            "parameters_original": result.parameters_before,
            **figures,
        }

    def ask_teacher(self, clock: Clock) -> float | None:
        """Store the teacher's predictions for all runs; return the seconds, or None if it is off.

        A training of one step does it, before several processes would do it at the same time.

        Raises:
            TimeIsUp: the time limit has passed; the next call continues.
        """
        if not self._settings.cache_teacher:
            return None
        self._cache.mkdir(exist_ok=True)
        output, record = self._cache / "one-step", self._cache / "teacher.json"
        with locked(self._cache / "lock"):
            if not record.exists():
                for leftover in (output, _state_of(output)):
                    shutil.rmtree(leftover, ignore_errors=True)
                step = self._settings.batch_size * self._settings.seq_len
                console.message("asking the teacher, once for all runs")
                files = (self._cache / "teacher").glob
                with clock.stops_after_save(lambda: sorted(files("*.safetensors"))):
                    _, figures = self._distill(step, output)
                write_atomically(record, json.dumps(figures, indent=1))
                shutil.rmtree(output)
        seconds: float = json.loads(record.read_text("utf-8"))["seconds"]
        return seconds

    def train(self, tokens: int, clock: Clock) -> dict[str, Any]:
        """Train the converted model if that is not done; return the figures of the training.

        The training is a run of its own from the converted model, with `distill`'s own schedule
        of the learning rate for this number of tokens.

        Raises:
            TimeIsUp: the time limit has passed; the next call continues.
        """
        output = self.checkpoint(tokens)
        state, record = _state_of(output), output.with_suffix(".json")
        teacher_seconds = self.ask_teacher(clock)
        if not output.exists():
            console.message(f"training: {self.name}, {self.share} of attention, {tokens:,} tokens")
            with clock.stops_after_save(SavedStates(state, ALONE).newest):
                _, figures = self._distill(tokens, output)
            write_atomically(record, json.dumps(figures, indent=1))
        if state.exists():  # a process was killed while it deleted the state
            shutil.rmtree(state)
        figures = json.loads(record.read_text("utf-8")) if record.exists() else {}
        stages = read_provenance(output)[-1]["metrics"]["stages"]
        trained = sum(stage["tokens"] for stage in stages)
        seconds = sum(stage["seconds"] for stage in stages)
        return {
            "tokens": trained,
            "seconds": seconds,
            "tokens_per_s": trained / seconds,
            "teacher_seconds_of_all_runs": teacher_seconds,
            "peak_bytes": figures.get("peak_bytes"),
            "stages": stages,
        }

    def _distill(self, tokens: int, output: Path) -> tuple[Any, dict[str, Any]]:
        settings = self._settings
        stage_tokens = self.arm.stage_tokens(tokens)
        options = {
            "teacher": str(settings.model),
            "data": settings.files,
            "data_tokens": settings.data_tokens,
            "stages": tuple(stage_tokens),
            "stage_tokens": stage_tokens,
            "seq_len": settings.seq_len,
            "batch_size": settings.batch_size,
            "validation_sequences": settings.validation_sequences,
            "validate_every": _NEVER,  # `distill` always validates at the beginning and the end
            "save_every": settings.save_every,
            "cache_teacher": settings.cache_teacher,
            "cache_dir": str(self._cache),
            "resume": (_state_of(output) / "run.json").exists(),
            "seed": settings.seed,
            "device": settings.device,
        }
        return _measured(
            lambda: distill(self.checkpoint(0), output, **(options | dict(self.arm.distill)))
        )


def tokens_so_far(work: Path, name: str, share: str, tokens: int, step: int) -> int:
    """Return the training tokens of an interrupted run at its last save; 0 if there is none.

    Args:
        work: the user's directory.
        name, share, tokens: the run.
        step: tokens of a step.
    """
    found = 0
    states = f"{_folder(name, share)}-*/trained-{tokens}.distill/state-*/progress.json"
    for progress in work.glob(states):
        saved = json.loads(progress.read_text("utf-8"))["contents"]["state"]
        earlier_stages = sum(result["tokens"] for result in saved["results"])
        found = max(found, earlier_stages + saved["step"] * step)
    return found


def _folder(name: str, share: str) -> str:
    return f"{name}-{share.replace('%', 'pct')}"


def _state_of(output: Path) -> Path:
    """Return the directory in which `distill` keeps the state of a run."""
    return output.with_name(f"{output.name}.distill")


def _measured(function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Call a function; return its result, and its seconds and the peak memory of the process."""
    PeakMemory(torch.device("cpu")).start()  # resets the peak
    started = time.perf_counter()
    result = function()
    return result, {
        "seconds": time.perf_counter() - started,
        "peak_bytes": memory_peak(),
        "threads": torch.get_num_threads(),
    }
