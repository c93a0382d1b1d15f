"""The picture of a distillation: losses over tokens, a panel for each stage."""

import json
from io import BytesIO
from typing import Any

from hybridize.extras import require_extra


def draw_losses(metrics: str) -> bytes:
    """Draw training and validation losses, as a PNG.

    Args:
        metrics: the text of ``metrics.jsonl``.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    require_extra("train", "matplotlib", "drawing a plot")
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.splitlines()]
    names = list(dict.fromkeys(line["stage"] for line in lines))
    figure = Figure(figsize=(5.2 * len(names), 3.8), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        mine = [line for line in lines if line["stage"] == name]
        training = [(line["step"], line["loss"]) for line in mine if "loss" in line]
        held_out = [(line["step"], line["validation"]) for line in mine if "validation" in line]
        axes.plot(*zip(*training, strict=True), color="#9ac1d9", linewidth=1, label="training")
        axes.plot(*zip(*held_out, strict=True), color="#d1495b", marker="o", markersize=3,
                  label="validation")  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("KL, nats per token" if name == "kl" else "error / power")
        axes.set_title(name)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
