"""A tiny teacher, its student, and a text to train on."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import hybridize
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair, check_pair, load_pair
from hybridize.compress.distill.results import DistillResult
from hybridize.compress.distill.stages import STAGES
from hybridize.compress.distill.trainer import Trainer
from hybridize.errors import HybridizeError
from tiny import LETTERS, write_stock, write_tokenizer

SHORT: dict[str, Any] = {
    "seq_len": 16,
    "batch_size": 4,
    "validation_sequences": 4,
    "validate_every": 4,
    "stage_tokens": {"align": 512, "kl": 512},
    "device": "cpu",
}
"""Options for eight steps per stage."""


def write_pair(directory: Path, **options: Any) -> tuple[Path, Path, Path]:
    """Write a teacher, a student that keeps one of three attention blocks, and a text."""
    teacher, student, text = (directory / name for name in ("teacher", "student", "text.jsonl"))
    write_stock(teacher, "llama", num_hidden_layers=3)
    write_tokenizer(teacher)
    hybridize.convert(teacher, student, **{"keep": (1,)} | options)
    rng = random.Random(0)
    lines = ["".join(rng.choices(LETTERS, k=rng.randint(5, 40))) for _ in range(120)]
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return teacher, student, text


def short_run(pair: tuple[Path, Path, Path], output: Path, **options: Any) -> DistillResult:
    """Distill for a few steps."""
    teacher, student, text = pair
    arguments = SHORT | {"teacher": teacher, "data": [str(text)]} | options
    if "stages" in options:
        given = arguments["stage_tokens"]
        arguments["stage_tokens"] = {n: given.get(n, 512) for n in options["stages"] if n in STAGES}
    return hybridize.distill(student, output, **arguments)


def losses(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file."""
    return [json.loads(line) for line in (directory / "distill.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    return load_file(directory / "model.safetensors")


def assert_same_weights(directory: Path, expected: Path) -> None:
    """Check that two checkpoints have the same bits."""
    actual, wanted = weights(directory), weights(expected)
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], wanted[name]) for name in wanted)


def stop_after(monkeypatch: Any, steps: int) -> None:
    """Make training fail after some steps, as an interruption would."""
    train_step, done = Trainer._train_step, list[int]()

    def stopping(trainer: Trainer) -> None:
        if len(done) == steps:
            raise HybridizeError("stopped")
        done.append(1)
        train_step(trainer)

    monkeypatch.setattr(Trainer, "_train_step", stopping)


def load_in_float64(teacher: Path, student: Path, **options: Any) -> tuple[Pair, DistillConfig]:
    """Load a pair for comparisons with formulas in float64."""
    config = DistillConfig(teacher=teacher, **options)
    pair = load_pair(
        student,
        teacher,
        check_pair(student, teacher),
        train=config.train,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert pair.teacher is not None
    pair.teacher.double()
    pair.student.double()
    return pair, config
