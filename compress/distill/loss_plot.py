"""Plot the losses of a distillation, one panel per stage."""

import json
from typing import Any

from hybridize.compress.distill.stages import STAGES
from hybridize.plots import new_figure, png_bytes


def draw_losses(metrics: str) -> bytes:
    """Plot training and validation losses over steps; return the PNG file.

    Args:
        metrics: the content of ``metrics.jsonl``.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.splitlines()]
    names = list(dict.fromkeys(line["stage"] for line in lines))
    figure = new_figure("train", figsize=(5.2 * len(names), 3.8), layout="constrained")
    for column, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), column)
        stage_lines = [line for line in lines if line["stage"] == name]
        training = [(line["step"], line["loss"]) for line in stage_lines if "loss" in line]
        validation = [
            (line["step"], line["validation"]) for line in stage_lines if "validation" in line
        ]
        axes.plot(*zip(*training, strict=True), color="#9ac1d9", linewidth=1, label="training")
        axes.plot(*zip(*validation, strict=True), color="#d1495b", marker="o", markersize=3,
                  label="validation")  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(STAGES[name].loss)
        axes.set_title(name)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return png_bytes(figure, dpi=130)
