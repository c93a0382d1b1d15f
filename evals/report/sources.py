"""Read what a report is made of: results of eval, bench and prune, and checkpoints' histories."""

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from hybridize.errors import InputError
from hybridize.evals.report.history import (
    Importance,
    Origin,
    Trained,
    is_scores,
    read_checkpoint,
    read_scores,
)


@dataclass(frozen=True)
class Score:
    """One metric of one model.

    Attributes:
        task, label: what was asked.
        headline: whether it stands for a whole task rather than for a part of one.
        is_group: whether it is the mean of others.
        value, stderr: the score, 0 to 1.
        difference, recovery, p_value: against the baseline; None for it and without one.
    """

    task: str
    label: str
    headline: bool
    is_group: bool
    value: float
    stderr: float | None
    difference: float | None
    recovery: float | None
    p_value: float | None


@dataclass(frozen=True)
class Evaluated:
    """What eval found out about a model."""

    model: str
    is_baseline: bool
    scores: tuple[Score, ...]
    perplexity: float | None
    origin: Origin


@dataclass(frozen=True)
class Benched:
    """What bench measured of a model at one point; speeds in tokens per second, bytes per batch."""

    model: str
    backend: str
    prompt_len: int
    batch_size: int
    prefill: float
    decode: float
    decode_ratio: float | None
    cache_bytes: int
    origin: Origin


@dataclass
class Sources:
    """All that was read."""

    evaluated: list[Evaluated] = field(default_factory=list)
    benched: list[Benched] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    importance: list[Importance] = field(default_factory=list)


def read_sources(paths: list[Path]) -> Sources:
    """Read results files, scores of prune and checkpoint directories.

    Raises:
        InputError: a file is none of these, or is damaged.
    """
    sources = Sources()
    for path in paths:
        if path.is_dir():
            sources.trained.append(read_checkpoint(path))
            continue
        content = _load(path)
        if content is None:
            sources.importance.append(read_scores(path))
            continue
        try:
            if not _read_results(content, path.name, sources):
                raise InputError(
                    f"{path}: not a file that hybridize eval -o or bench -o wrote; a checkpoint "
                    "is named by its directory"
                )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path}: damaged: {type(error).__name__}: {_first_line(error)}; write it again"
            ) from error
    return sources


def _load(path: Path) -> Any:
    """Return what a JSON file holds; None for what prune --scores writes, which is none."""
    try:
        if is_scores(path):
            return None
        return json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not JSON that eval -o or bench -o wrote: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} cannot be drawn")


def _read_results(content: Any, file: str, sources: Sources) -> bool:
    if not isinstance(content, dict):
        return False
    results = content["models"].values() if "models" in content else [content]
    known = False
    for result in results:
        ours = result.get("hybridize", {})
        command = ours.get("command")
        if command == "eval":
            sources.evaluated.append(_evaluated(result, ours, file))
        elif command == "bench":
            origin = Origin("bench", str(ours["version"]), _text(ours.get("commit")), file)
            sources.benched += [_benched(row, origin) for row in result["rows"]]
        else:
            return False
        known = True
    return known


def _evaluated(result: dict[str, Any], ours: dict[str, Any], file: str) -> Evaluated:
    origin = Origin("eval", str(ours["version"]), _text(result.get("git_hash")), file)
    compared = {(c["task"], c["metric"], c["filter"]): c for c in ours["comparisons"]}
    scores = []
    for metric in ours["metrics"]:
        if metric["metric"] not in ("acc", "acc_norm", "exact_match"):
            continue
        other = compared.get((metric["task"], metric["metric"], metric["filter"]), {})
        scores.append(
            Score(
                task=str(metric["task"]),
                label=str(metric["label"]),
                headline=metric["depth"] == 0,
                is_group=bool(metric["is_group"]),
                value=float(metric["value"]),
                stderr=_number(metric["stderr"]),
                difference=_number(other.get("difference")),
                recovery=_number(other.get("recovery")),
                p_value=_number(other.get("p_value")),
            )
        )
    perplexity = ours["perplexity"]
    return Evaluated(
        model=str(ours["model"]),
        is_baseline=ours["baseline"] == ours["model"],
        scores=tuple(scores),
        perplexity=None if perplexity is None else float(perplexity["perplexity"]),
        origin=origin,
    )


def _benched(row: dict[str, Any], origin: Origin) -> Benched:
    ratios = row["ratios"]
    return Benched(
        model=str(row["model"]),
        backend=str(row["backend"]),
        prompt_len=int(row["point"]["prompt_len"]),
        batch_size=int(row["point"]["batch_size"]),
        prefill=float(row["prefill"]["median"]),
        decode=float(row["decode"]["median"]),
        decode_ratio=None if ratios is None else float(ratios["decode"]["median"]),
        cache_bytes=int(row["kv_bytes"]) + int(row["state_bytes"]),
        origin=origin,
    )


def short(model: str) -> str:
    """Return a model's name without the folders that it lies in."""
    return PurePath(model).name or model


def _number(value: Any) -> float | None:
    # lm-eval writes "N/A" where there is no standard error.
    return None if value is None or isinstance(value, str) else float(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
