"""Read the files of a report: results of eval and bench, scores of prune, checkpoints."""

import json
from pathlib import Path
from typing import Any

from hybridize.errors import InputError, first_line
from hybridize.evals.report.read_history import is_scores, read_checkpoint, read_scores
from hybridize.evals.report.sources import Benched, Evaluated, Origin, Score, Sources

_ACCURACIES = ("acc", "acc_norm", "exact_match")


def read_sources(paths: list[Path]) -> Sources:
    """Read result files, scores of prune, and checkpoint directories.

    Raises:
        InputError: a file has another format, or is damaged.
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
                    f"{path}: not a result of eval or bench; for a checkpoint, name its directory"
                )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path}: damaged: {type(error).__name__}: {first_line(error)}; write it again"
            ) from error
    return sources


def _load(path: Path) -> Any:
    """Return the content of a JSON file; None for scores of prune, which are safetensors."""
    try:
        if is_scores(path):
            return None
        return json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not JSON that eval or bench has written: {first_line(error)}"
        ) from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} cannot be drawn")


def _read_results(content: Any, file: str, sources: Sources) -> bool:
    """Add the results in a file to ``sources``; return whether there are any."""
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
        if metric["metric"] not in _ACCURACIES:
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


def _number(value: Any) -> float | None:
    # lm-eval writes "N/A" where there is no standard error.
    return None if value is None or isinstance(value, str) else float(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
