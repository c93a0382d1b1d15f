"""Read the history of a checkpoint, and the scores that prune wrote."""

import json
from pathlib import Path
from typing import Any

from hybridize.errors import InputError
from hybridize.evals.report.sources import Choice, Importance, Origin, Trained

_KINDS = {"ffn": "MLP", "attention": "attention", "mamba": "Mamba-2"}
"""The kind of block that a pruning axis belongs to, by the first word of the axis's name."""


def read_checkpoint(directory: Path) -> Trained:
    """Read the history in a checkpoint's directory.

    Raises:
        InputError: there is no history, or it is damaged.
    """
    from hybridize.checkpoints import read_provenance

    records = read_provenance(directory)
    if not records:
        raise InputError(f"{directory}: has no history; hybridize writes one as hybridize.json")
    file = f"{directory.name}/hybridize.json"
    try:
        origins = [
            Origin(str(record["command"]), str(record["versions"]["hybridize"]), None, file)
            for record in records
        ]
        history = tuple(
            (str(record["command"]), str(record["source"]["name"]), str(record["created"]))
            for record in records
        )
        choices = [_choice(*pair) for pair in zip(records, origins, strict=True)]
        losses = _read_losses(directory / "distill.jsonl")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{directory}: its history is damaged: {error}") from error
    found = tuple(choice for choice in choices if choice is not None)
    return Trained(directory.name, history, losses, found, origins[-1])


def _choice(record: dict[str, Any], origin: Origin) -> Choice | None:
    measured = record.get("metrics", {}).get("sensitivity")
    if record["command"] != "convert" or measured is None:
        return None
    layout = str(record["metrics"]["layout_after"])
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
                point = (float(line["step"]), float(line["validation"]))
                losses.setdefault(str(line["stage"]), []).append(point)
    return losses


def is_scores(path: Path) -> bool:
    """Return whether a file starts with the length of a safetensors header, unlike JSON."""
    with path.open("rb") as file:
        start = file.read(8)
    return len(start) == 8 and int.from_bytes(start, "little") < path.stat().st_size


def read_scores(path: Path) -> Importance:
    """Read the scores that prune wrote.

    Raises:
        InputError: the file has another format, or is damaged.
    """
    from importlib.metadata import version

    from hybridize.checkpoints.checksums import load_checked

    try:
        tensors, metadata = load_checked(path)
        if metadata["format"] != "hybridize-scores":
            raise KeyError("format")
        blocks = tuple(float(value) for value in tensors["blocks"])
        kinds = ["block"] * len(blocks)
        for what, axis, block_idx in (n.split(".") for n in tensors if n.startswith("units.")):
            kind = _KINDS.get(axis.split("-")[0]) if what == "units" else None
            if kind is not None:
                kinds[int(block_idx)] = kind
    except (KeyError, ValueError, TypeError, IndexError, OSError) as error:
        raise InputError(
            f"{path}: not a file of scores of prune ({type(error).__name__})"
        ) from error
    return Importance(blocks, tuple(kinds), Origin("prune", version("hybridize"), None, path.name))
