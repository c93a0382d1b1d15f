"""The figure of `real_models.py`: quality over training tokens, and decoding speed over context."""

import math
from collections.abc import Callable
from typing import Any

from real_models_jobs import show_count
from real_models_store import ORIGINAL, Row, find
from real_models_table import perplexity_ratio

from hybridize.plots import new_figure, png_bytes

_COLORS = {"hybridize": "#2a6f97", "mamba-in-the-llama": "#b56576", "random": "#888888"}
_TICKS = {
    10: (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7),
    100: (1, 2, 3, 5),
    1000: (1, 2, 5),
    math.inf: (1,),
}
"""First digits of the labels of a logarithmic axis, by the ratio of its ends, which is below."""

_LABEL_RATIO = 1.4
"""Smallest ratio of two labeled numbers of tokens."""

_STYLES = ("o-", "s--", "^:", "d-.")


def draw(content: dict[str, Any], name: str) -> bytes:
    """Return the figure as a PNG.

    Args:
        content: the results, see `Store`.
        name: the model's name, for the title.
    """
    rows = [row for row in content["rows"] if "quality" in row and row["arm"] in _COLORS]
    original = find(content["rows"], ORIGINAL)
    shares = list(dict.fromkeys(row["share"] for row in content["rows"] if row["arm"] in _COLORS))
    has_speeds = any("speed" in row for row in content["rows"])
    figure = new_figure("bench", figsize=(14 if has_speeds else 9.5, 4.2), layout="constrained")
    kl, perplexity, *speeds = figure.subplots(1, 3 if has_speeds else 2)
    _curves(kl, rows, shares, lambda row: row["quality"]["kl"])
    kl.set_title("KL from the original, nats per token")
    _curves(perplexity, rows, shares, lambda row: perplexity_ratio(row, original))
    perplexity.set_title("perplexity, multiple of the original's")
    for decode in speeds:
        _speeds(decode, content["rows"], shares)
        decode.set_title("decoding, tokens/s")
    for axes in (kl, perplexity, *speeds):
        axes.grid(alpha=0.3, which="both")
    for axes in (perplexity, *speeds):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(name)
    return png_bytes(figure, dpi=130)


def _curves(
    axes: Any, rows: list[Row], shares: list[str], value: Callable[[Row], float | None]
) -> None:
    """Draw one line for each arm and share. Untrained models are left of the first milestone."""
    from matplotlib.ticker import LogLocator

    trained = [row["tokens"] for row in rows if row["tokens"]]
    zero = min(trained, default=1000) / 4
    for arm, color in _COLORS.items():
        for number, share in enumerate(shares):
            points = sorted(
                (row["tokens"] or zero, figure)
                for row in rows
                if (row["arm"], row["share"]) == (arm, share) and (figure := value(row)) is not None
            )
            if points:
                style = _STYLES[number % len(_STYLES)]
                axes.plot(*zip(*points, strict=True), style, color=color, ms=4,
                          label=f"{arm}, {share} attention")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label_milestones(axes, {row["tokens"] for row in rows}, zero)
    axes.minorticks_off()
    axes.set_xlabel("training tokens")
    low, high = axes.get_ylim()
    ticks = next(ticks for ratio, ticks in _TICKS.items() if high / low < ratio)
    axes.yaxis.set_major_locator(LogLocator(subs=ticks, numticks=20))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")


def _label_milestones(axes: Any, milestones: set[int], zero: float) -> None:
    """Label numbers of tokens, leaving out those whose label would touch the one before."""
    positions: list[float] = []
    labels = []
    for tokens in sorted(milestones):
        if not positions or (tokens or zero) > _LABEL_RATIO * positions[-1]:
            positions.append(tokens or zero)
            labels.append(show_count(tokens))
    axes.set_xticks(positions, labels)


def _speeds(axes: Any, rows: list[Row], shares: list[str]) -> None:
    contexts: set[int] = set()
    for row in (row for row in rows if "speed" in row):
        style = _STYLES[shares.index(row["share"]) % len(_STYLES)] if shares else "o-"
        for model, color in (("original", "#888888"), ("hybrid", _COLORS["hybridize"])):
            points = [
                (point["context"], point["decode"]["median"])
                for point in row["speed"]["points"]
                if point["model"] == model
            ]
            contexts |= {context for context, _ in points}
            label = f"{row['share']} attention"
            if model == "original":
                label = f"original, measured beside {row['share']}"
            axes.plot(*zip(*points, strict=True), style, color=color, ms=4, label=label)
    axes.set_xscale("log", base=2)
    ticks = sorted(contexts)
    axes.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else f"{tick}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context, tokens")
