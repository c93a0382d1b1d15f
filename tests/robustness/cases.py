"""The cases of the sweep. A case is a command and its inputs; one input is damaged.

The number of a case determines its command, its options and the damage.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from damage_files import copy, damage
from specimens import DEMO, DISTILL, PRUNE, STUDENT, TEACHER

from tiny import ARCHITECTURES

Options = Callable[[Random], str]


@dataclass(frozen=True)
class Command:
    """A command that the sweep runs.

    Attributes:
        weight: relative frequency of the command.
        line: the command line. Inputs are in ``in/``, outputs go to ``out/``.
        inputs: path of each input, and the specimen to copy there. ``*`` is any checkpoint, ``+``
            any small Transformer.
        damaged: glob patterns; one file that matches one of them is damaged.
        written: names in ``out/`` after a success.
        left: names that may be in ``out/`` after a failure.
        extra: more options; half of the cases use one of them.
    """

    weight: int
    line: str
    inputs: dict[str, str]
    damaged: tuple[str, ...] = ("in/model/*",)
    written: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


_TEXTS = {"in/text.txt": "texts/text.txt", "in/text.jsonl": "texts/text.jsonl"}
_PAIR = {"in/student": STUDENT, "in/teacher": TEACHER, "in/text.jsonl": "texts/text.jsonl"}
_MODELS = ("in/student/*", "in/teacher/*")
_CALIBRATED = "--calibration in/text.jsonl --calibration-tokens 1024"

COMMANDS: dict[str, Command] = {
    "inspect": Command(200, "inspect in/model", {"in/model": "*"}, extra=("--json",)),
    "verify": Command(160, "verify in/model", {"in/model": "*"}, extra=("--json",)),
    "convert": Command(
        160,
        "convert in/model -o out/done",
        {"in/model": "+"},
        written=("done",),
        extra=(
            "--keep 0",
            "--attention 50%",
            "--init random",
            "--format hybridize",
            "--format granitemoehybrid",
            "--ssm-groups kv",
            "--ssm-expand 2",
            "--d-state 12",
            "--dtype bfloat16",
            "--max-shard-size 20KB",
            "--allow-nonfinite",
        ),
    ),
    "convert --dry-run": Command(
        160,
        "convert in/model -o out/done --dry-run",
        {"in/model": "*"},
        extra=("--keep 0", "--attention 50%", "--format hybridize", "--json"),
    ),
    "convert --calibration": Command(
        20,
        f"convert in/model -o out/done {_CALIBRATED}",
        {"in/model": TEACHER, **_TEXTS},
        damaged=("in/model/*", "in/text.jsonl", "in/text.jsonl"),
        written=("done",),
        extra=("--attention 50% --select sensitivity",),
    ),
    "convert --init": Command(
        40,
        "convert in/model -o out/done --keep 1 --init in/donor",
        {"in/model": TEACHER, "in/donor": STUDENT},
        damaged=("in/donor/*",),
        written=("done",),
    ),
    "generate": Command(
        80,
        "generate in/model -p Hello --max-new-tokens 2 --device cpu",
        {"in/model": "*"},
        extra=("--temperature 0.7 --top-p 0.9", "--json"),
    ),
    "inspect --states": Command(
        20,
        "inspect in/model --states in/text.txt --states-tokens 32",
        {"in/model": "*", **_TEXTS},
        damaged=("in/model/*", "in/text.txt"),
    ),
    "distill --dry-run": Command(
        60, f"{DISTILL} --dry-run", _PAIR, damaged=_MODELS, extra=("--train all",)
    ),
    "distill": Command(
        12, DISTILL, _PAIR, damaged=(*_MODELS, "in/text.jsonl", "in/text.jsonl"), written=("done",)
    ),
    "distill --resume": Command(
        12,
        f"{DISTILL} --resume",
        {**_PAIR, "out/done.distill": "interrupted"},
        damaged=("out/done.distill/*", "out/done.distill/state-*/*", "out/done.distill/**/*"),
        written=("done",),
        left=("done.distill",),
    ),
    "prune": Command(
        8,
        f"prune in/model -o out/done --params 80% --candidates 1 --device cpu {_CALIBRATED}",
        {"in/model": "+", **_TEXTS},
        written=("done",),
    ),
    "prune --dry-run": Command(
        8,
        "prune in/model -o out/done --dry-run --params 90% --offload --axes ffn --device cpu "
        f"{_CALIBRATED}",
        {"in/model": "*", **_TEXTS},
        damaged=("in/model/*", "in/text.jsonl"),
    ),
    "prune --resume": Command(
        8,
        f"{PRUNE} --resume",
        {"in/model": TEACHER, **_TEXTS, "out/done.prune": "interrupted-prune"},
        damaged=("out/done.prune/*", "out/done.prune/*", "out/done.prune/**/*"),
        written=("done",),
        left=("done.prune",),
    ),
    "prune --scores": Command(
        24,
        "prune in/model -o out/done --params 80% --candidates 1 --device cpu --offload "
        f"--scores in/scores.safetensors {_CALIBRATED}",
        {"in/model": TEACHER, **_TEXTS, "in/scores.safetensors": "results/scores.safetensors"},
        damaged=("in/scores.safetensors",),
        written=("done",),
    ),
    "quantize": Command(
        60,
        "quantize in/model -o out/done --keep-bf16 0",
        {"in/model": "*"},
        written=("done",),
        extra=("--scheme fp8-tensor --calibration-tokens 512", "--max-shard-size 20KB"),
    ),
    "quantize --dry-run": Command(
        80, "quantize in/model -o out/done --dry-run", {"in/model": "*"}, extra=("--json",)
    ),
    "bench --predict": Command(
        80, "bench in/model --predict h100 --prompt-len 64 --gen-len 8", {"in/model": "*"}
    ),
    "bench": Command(
        20,
        "bench in/model --prompt-len 8 --gen-len 2 --repeats 1 --device cpu -o out/bench.json",
        {"in/model": "*"},
        written=("bench.json",),
    ),
    "eval --perplexity": Command(
        20,
        "eval in/model --perplexity in/text.txt --device cpu -o out/eval.json",
        {"in/model": "*", **_TEXTS},
        damaged=("in/model/*", "in/text.txt"),
        written=("eval.json",),
    ),
    "eval --baseline": Command(
        8,
        "eval in/model --baseline in/teacher --mmlu-dir in/exam --num-fewshot 1 --device cpu "
        "-o out/eval.json",
        {"in/model": STUDENT, "in/teacher": TEACHER, "in/exam": "exam"},
        damaged=("in/exam/*/*", "in/teacher/*"),
        written=("eval.json",),
    ),
    "report": Command(
        200,
        "report in/results/eval.json in/results/bench.json in/student -o out/page.html",
        {"in/results": "results", "in/student": STUDENT},
        damaged=("in/results/*.json", "in/results/*.json", "in/student/hybridize.json"),
        written=("page.html",),
    ),
    "export --dry-run": Command(
        60, "export in/model -o out/done --to onnx --dry-run", {"in/model": "*"}
    ),
}

CHECKPOINTS = (
    *(f"checkpoints/{name}" for name in (*ARCHITECTURES, "sharded", "own", "fp8", "fp8-tensor")),
    STUDENT, STUDENT, TEACHER, TEACHER, "demo",
)  # fmt: skip
TRANSFORMERS = (
    *(f"checkpoints/{name}" for name in ("llama", "llama", "mistral", "qwen2", "qwen3", "sharded")),
)
_FAVORITES = ("config.json", "config.json", "model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Case:
    """One case, with its files in a directory.

    Attributes:
        number: the case number.
        directory: contains ``in/`` and ``out/``.
        command: the command.
        words: the words of the command line.
        description: the command and the damage.
    """

    number: int
    directory: Path
    command: Command
    words: tuple[str, ...]
    description: str


def copy_inputs(command: Command, specimens: Path, directory: Path, model: Path) -> None:
    """Copy the undamaged inputs of a command into a directory.

    Args:
        command: the command.
        specimens: the directory that `write_specimens` wrote.
        directory: where to copy the inputs; emptied first.
        model: the checkpoint for ``*`` and ``+``.
    """
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "out").mkdir(parents=True)
    for path, source in command.inputs.items():
        copy(model if source in "*+" else specimens / source, directory / path)


def make_case(number: int, specimens: Path, directory: Path, model: Path | None = None) -> Case:
    """Create a case with its files.

    Args:
        number: the case number.
        specimens, directory: see `copy_inputs`.
        model: the checkpoint for ``*`` and ``+``; one of the specimens if None.
    """
    rng = Random(number)
    names = [name for name in COMMANDS if model is None or "*" in COMMANDS[name].inputs.values()]
    command = COMMANDS[rng.choices(names, [COMMANDS[name].weight for name in names])[0]]
    if model is None:
        chosen = rng.choice(TRANSFORMERS if "+" in command.inputs.values() else CHECKPOINTS)
        model = DEMO if chosen == "demo" else specimens / chosen
    copy_inputs(command, specimens, directory, model)
    words = f"{command.line} --quiet".split()
    if command.extra and rng.random() < 0.5:
        words += rng.choice(command.extra).split()
    file = _chosen(rng, directory, command.damaged)
    what = damage(rng, file)
    origin = f" ({model.name})" if set("*+") & set(command.inputs.values()) else ""
    description = f"hybridize {' '.join(words)}{origin}, {file.relative_to(directory)}: {what}"
    return Case(number, directory, command, tuple(words), description)


def _chosen(rng: Random, directory: Path, patterns: tuple[str, ...]) -> Path:
    """Choose the file to damage, mostly a configuration or weights."""
    files = sorted(path for path in directory.glob(rng.choice(patterns)) if path.is_file())
    favorites = [path for path in files if path.name in _FAVORITES]
    return rng.choice(favorites if favorites and rng.random() < 0.7 else files)
