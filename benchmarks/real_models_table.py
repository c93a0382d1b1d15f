"""The tables of `real_models.py`, in Markdown, from its results."""

from collections.abc import Iterable, Sequence
from typing import Any

from real_models_jobs import show_count
from real_models_store import ORIGINAL, Row, find

CHANCE = 0.25
"""Accuracy of guessing in MMLU."""


def tables(content: dict[str, Any]) -> str:
    """Return all tables; each has the rows that exist so far."""
    parts = [_quality_table(content), _tokens_table(content), _speed_table(content)]
    return "\n\n".join(part for part in parts if part)


def perplexity_ratio(row: Row, original: Row | None) -> float | None:
    """Return a row's perplexity as a multiple of the original's; None if one is missing."""
    if original is None or "quality" not in original or "quality" not in row:
        return None
    ratio: float = row["quality"]["perplexity"] / original["quality"]["perplexity"]
    return ratio


def _quality_table(content: dict[str, Any]) -> str:
    rows, original = content["rows"], find(content["rows"], ORIGINAL)
    measured = [row for row in rows if "quality" in row or "mmlu" in row]
    if not measured:
        return ""
    tasks = list(dict.fromkeys(task for row in measured for task in _recall(row)))
    order = {arm: number for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows))}

    def key(row: Row) -> tuple[Any, ...]:
        share = float(row["share"].rstrip("%"))
        return (row["arm"] != ORIGINAL["arm"], -share, row["tokens"], order[row["arm"]])

    head = ["recipe", "attention", "tokens", "KL", "perplexity"]
    head += [task.removeprefix("recall_").replace("_", " ") for task in tasks]
    head += ["MMLU, continuations", "of it above chance", "training tokens/s", "training memory"]
    return _markdown(head, (_quality_cells(r, original, tasks) for r in sorted(measured, key=key)))


def _recall(row: Row) -> dict[str, float]:
    found: dict[str, float] = row.get("quality", {}).get("recall", {})
    return found


def _quality_cells(row: Row, original: Row | None, tasks: Sequence[str]) -> list[str]:
    quality, mmlu, training = (row.get(part, {}) for part in ("quality", "mmlu", "train"))
    ratio = perplexity_ratio(row, original)
    theirs = (original or {}).get("mmlu")
    above = None
    if mmlu and theirs and theirs["accuracy"] > CHANCE:
        above = (mmlu["accuracy"] - CHANCE) / (theirs["accuracy"] - CHANCE)
    peak = training.get("peak_bytes")
    return [
        row["arm"],
        row["share"],
        show_count(row["tokens"]),
        _show(quality.get("kl"), "{:.3f}"),
        _show(ratio, "{:.3f} ×"),
        *(_show(_recall(row).get(task), "{:.0%}") for task in tasks),
        f"{mmlu['accuracy']:.1%} ± {mmlu['stderr']:.1%}" if mmlu else "",
        _show(above, "{:.0%}"),
        _show(training.get("tokens_per_s"), "{:.0f}"),
        _show(peak and peak / 2**30, "{:.1f} GiB"),
    ]


def _tokens_table(content: dict[str, Any]) -> str:
    """Compare our KL with that of the recipe that has four times the tokens."""
    found = {
        (row["arm"], row["share"], row["tokens"]): row["quality"]["kl"]
        for row in content["rows"]
        if "quality" in row
    }
    rows = []
    for (arm, share, tokens), kl in sorted(found.items(), key=lambda item: item[0][1:]):
        theirs = found.get(("mamba-in-the-llama", share, 4 * tokens))
        if arm == "hybridize" and tokens and theirs is not None:
            rows.append([share, show_count(tokens), f"{kl:.3f}", f"{theirs:.3f}"])
    head = ["attention", "tokens", "KL, hybridize", "KL, mamba-in-the-llama, 4 × the tokens"]
    return _markdown(head, rows) if rows else ""


def _speed_table(content: dict[str, Any]) -> str:
    rows = []
    for measured in (row for row in content["rows"] if "speed" in row):
        hybrid = f"{measured['share']} attention"
        for point in measured["speed"]["points"]:
            rows.append(
                [
                    "original" if point["model"] == "original" else hybrid,
                    f"{point['context']:,}",
                    f"{point['prefill']['median']:,.0f}",
                    f"{point['prefill_ratio']:.2f} ×",
                    f"{point['decode']['median']:,.1f}",
                    f"{point['decode_ratio']:.2f} ×",
                    f"{point['cache_bytes'] / 2**20:,.0f} MiB",
                    _show(point["peak_bytes"] and point["peak_bytes"] / 2**20, "{:,.0f} MiB"),
                ]
            )
    head = ["model", "context", "prefill, tokens/s", "of the original"]
    head += ["decode, tokens/s", "of the original", "cache", "peak memory"]
    return _markdown(head, rows) if rows else ""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    filled = [i for i in range(len(head)) if any(row[i] for row in lines[2:])]
    return "\n".join("| " + " | ".join(row[i] for i in filled) + " |" for row in lines)


def _show(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)
