"""Undamaged inputs for the sweep: checkpoints, texts, results, and interrupted runs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sandbox import run

from tiny import ARCHITECTURES, LETTERS, write_stock, write_tokenizer

DEMO = Path(__file__).resolve().parents[2] / "hybridize" / "demo" / "checkpoint"

TEACHER = "checkpoints/llama"
STUDENT = "checkpoints/student"

DISTILL = (
    "distill in/student -o out/done --teacher in/teacher --data in/text.jsonl --seq-len 16 "
    "--batch-size 2 --validation-sequences 2 --align-tokens 64 --kl-tokens 96 --cache-teacher 4 "
    "--cache-blocks 1MB --save-every 1 --device cpu"
)
"""Two steps of align and three of kl, with two sequences each."""
PRUNE = (
    "prune in/model -o out/done --params 90% --axes ffn --candidates 1 --device cpu "
    "--calibration in/text.jsonl --calibration-tokens 1024"
)
_SAVES = 4  # two during align, one at its end, one during kl


def write_specimens(directory: Path) -> None:
    """Write all specimens.

    These are ``checkpoints/``, ``texts/``, ``results/``, ``exam/``, and the working directories of
    two interrupted commands: ``interrupted/`` of `DISTILL`, stopped at its `_SAVES`-th save, and
    ``interrupted-prune/`` of `PRUNE`, stopped after all measurements.
    """
    checkpoints, texts = directory / "checkpoints", directory / "texts"
    for name in ARCHITECTURES:
        layers = (
            {} if name in ("granitemoehybrid", "bamba", "nemotron_h") else {"num_hidden_layers": 2}
        )
        write_stock(checkpoints / name, name, **layers)
        write_tokenizer(checkpoints / name)
    write_stock(checkpoints / "sharded", "qwen2", shard="20KB", num_hidden_layers=2)
    write_tokenizer(checkpoints / "sharded")
    _write_texts(texts)
    run_successfully(directory, f"convert {TEACHER} -o {STUDENT} --keep 1")
    run_successfully(directory, f"convert {TEACHER} -o checkpoints/own --keep 1 --format hybridize")
    run_successfully(directory, f"quantize {TEACHER} -o checkpoints/fp8 --keep-bf16 0")
    run_successfully(
        directory,
        f"quantize {STUDENT} -o checkpoints/fp8-tensor --scheme fp8-tensor --keep-bf16 0 "
        "--calibration texts/text.jsonl --calibration-tokens 256",
    )
    _write_results(directory)
    _interrupt_distillation(directory)
    _interrupt_pruning(directory)


def run_successfully(directory: Path, command: str) -> None:
    """Run a command that must succeed."""
    done = run(command.split(), directory)
    assert done.code == 0, done.err


def _write_texts(texts: Path) -> None:
    texts.mkdir()
    rng = random.Random(0)
    lines = ["".join(rng.choices(LETTERS, k=rng.randint(5, 40))) for _ in range(60)]
    (texts / "text.txt").write_text("\n".join(lines))
    (texts / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    (texts / "text.json").write_text(json.dumps([{"text": line} for line in lines]))


def _write_results(directory: Path) -> None:
    (directory / "results").mkdir()
    exam = directory / "exam"
    for split in ("dev", "test"):
        (exam / split).mkdir(parents=True)
        rows = [f"Which is {x}?,{x},b,c,d,A" for x in "efghi"]
        (exam / split / f"letters_{split}.csv").write_text("\n".join(rows) + "\n")
    run_successfully(
        directory,
        f"eval {STUDENT} --baseline {TEACHER} --mmlu-dir exam --perplexity texts/text.txt "
        "-o results/eval.json --num-fewshot 1",
    )
    run_successfully(
        directory,
        f"bench {STUDENT} --baseline {TEACHER} --prompt-len 8 --gen-len 2 --repeats 1 "
        "-o results/bench.json",
    )
    run_successfully(
        directory,
        f"prune {TEACHER} -o pruned --params 80% --calibration texts/text.jsonl "
        "--calibration-tokens 512 --candidates 1 --scores results/scores.safetensors",
    )


def _interrupt_distillation(directory: Path) -> None:
    from damage_files import copy

    from hybridize.compress.distill.saved_states import SavedStates

    folder = directory / "interrupting"
    for source, name in (
        (TEACHER, "teacher"),
        (STUDENT, "student"),
        ("texts/text.jsonl", "text.jsonl"),
    ):
        copy(directory / source, folder / "in" / name)
    save, saves = SavedStates.save, []

    def save_some(*arguments: Any) -> None:
        saves.append(save(*arguments))
        if len(saves) == _SAVES:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavedStates, "save", save_some)
        done = run(DISTILL.split(), folder)
    assert done.code == 130, done.err
    (folder / "out" / "done.distill").rename(directory / "interrupted")


def _interrupt_pruning(directory: Path) -> None:
    from damage_files import copy

    from hybridize.compress.prune.pruning_run import PruningRun

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    folder = directory / "interrupting-prune"
    copy(directory / TEACHER, folder / "in" / "model")
    copy(directory / "texts/text.jsonl", folder / "in" / "text.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PruningRun, "_write", stop)
        done = run(PRUNE.split(), folder)
    assert done.code == 130, done.err
    (folder / "out" / "done.prune").rename(directory / "interrupted-prune")
