"""Read how checkpoints came about, and what prune found to matter, for a report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.errors import InputError

_KINDS = {"ffn": "MLP", "attention": "attention", "mamba": "Mamba-2"}  # by how an axis begins


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from: the command, its version and commit, and the file."""

    command: str
    version: str
    commit: str | None
    file: str

    def __str__(self) -> str:
        commit = f", commit {self.commit}" if self.commit else ""
        return f"hybridize {self.command} {self.version}{commit}, from {self.file}"


@dataclass(frozen=True)
class Choice:
    """How attention blocks were chosen by sensitivity.

    Attributes:
        kept: the choice, counted among the attention blocks from 0.
        curve: numbers of attention blocks, and nats per token by which the best choice of so
            many is away from the original.
        origin: the conversion.
    """

    kept: tuple[int, ...]
    curve: tuple[tuple[float, float], ...]
    origin: Origin


@dataclass(frozen=True)
class Trained:
    """A checkpoint's history.

    Attributes:
        model: its name.
        steps: command, source and time of each.
        losses: stage to pairs of steps and the loss on held-out rows.
        choices: of the conversions that measured what to keep.
        origin: the last step.
    """

    model: str
    steps: tuple[tuple[str, str, str], ...]
    losses: dict[str, list[tuple[float, float]]]
    choices: tuple[Choice, ...]
    origin: Origin


@dataclass(frozen=True)
class Importance:
    """What each block of a model is worth, as prune measured it.

    Attributes:
        blocks: nats per token that skipping each of them costs.
        kinds: what each of them is.
        origin: the file.
    """

    blocks: tuple[float, ...]
    kinds: tuple[str, ...]
    origin: Origin


def read_checkpoint(directory: Path) -> Trained:
    """Read the history that lies in a checkpoint's directory.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from hybridize.checkpoints import read_provenance

    steps = read_provenance(directory)
    if not steps:
        raise InputError(f"{directory}: has no history; hybridize writes one as hybridize.json")
    file = f"{directory.name}/hybridize.json"
    try:
        origins = [
            Origin(str(step["command"]), str(step["versions"]["hybridize"]), None, file)
            for step in steps
        ]
        history = tuple(
            (str(step["command"]), str(step["source"]["name"]), str(step["created"]))
            for step in steps
        )
        choices = [_choice(step, origin) for step, origin in zip(steps, origins, strict=True)]
        losses = _read_losses(directory / "distill.jsonl")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{directory}: its history is damaged: {error}") from error
    found = tuple(choice for choice in choices if choice is not None)
    return Trained(directory.name, history, losses, found, origins[-1])


def _choice(step: dict[str, Any], origin: Origin) -> Choice | None:
    measured = step.get("metrics", {}).get("sensitivity")
    if step["command"] != "convert" or measured is None:
        return None
    layout = str(step["metrics"]["layout_after"])
    count = layout.count("*")
    curve = tuple((float(len(point["kept"])), float(point["kl"])) for point in measured)
    chosen = next(point["kept"] for point in measured if len(point["kept"]) == count)
    return Choice(tuple(int(block) for block in chosen), curve, origin)


def _read_losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    losses: dict[str, list[tuple[float, float]]] = {}
    if path.is_file():
        for text in path.read_text("utf-8").splitlines():
            line = json.loads(text)
            if "validation" in line:
                place = (float(line["step"]), float(line["validation"]))
                losses.setdefault(str(line["stage"]), []).append(place)
    return losses


def is_scores(path: Path) -> bool:
    """Whether a file has the length in front that safetensors begin with, as JSON never does."""
    with path.open("rb") as file:
        start = file.read(8)
    return len(start) == 8 and int.from_bytes(start, "little") < path.stat().st_size


def read_scores(path: Path) -> Importance:
    """Read what ``prune --scores`` wrote.

    Raises:
        InputError: it is something else.
    """
    from importlib.metadata import version

    from hybridize.checkpoints.checksums import load_checked

    try:
        tensors, about = load_checked(path)
        if about["format"] != "hybridize-scores":
            raise KeyError("format")
        blocks = tuple(float(value) for value in tensors["blocks"])
        kinds = ["block"] * len(blocks)
        for what, axis, place in (n.split(".") for n in tensors if n.startswith("units.")):
            kind = _KINDS.get(axis.split("-")[0]) if what == "units" else None
            if kind is not None:
                kinds[int(place)] = kind
    except (KeyError, ValueError, TypeError, IndexError, OSError) as error:
        raise InputError(
            f"{path}: not scores that prune --scores has written ({type(error).__name__})"
        ) from error
    return Importance(blocks, tuple(kinds), Origin("prune", version("hybridize"), None, path.name))
