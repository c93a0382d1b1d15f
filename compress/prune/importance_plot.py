"""The plot of the importance of a model's blocks."""

from hybridize.compress.prune.scores import Scores
from hybridize.modeling.layers.kinds import ATTENTION, LAYER_KINDS, MAMBA, MLP
from hybridize.plots import new_figure, png_bytes

_COLORS = {ATTENTION: "#d1495b", MAMBA: "#2a6f97", MLP: "#9aa5b1"}
_OTHER_COLOR = "#7b4b94"


def draw_importance(scores: Scores, layout: str) -> bytes:
    """Return a PNG with the importance and the influence of each block.

    Args:
        scores: the measured importance.
        layout: the model's pattern.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    figure = new_figure("train", figsize=(max(6.4, 0.16 * len(layout)), 4.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, values, label in (
        (top, scores.blocks, "KL if skipped, nats per token"),
        (bottom, scores.influence, "influence, 1 - cosine"),
    ):
        for letter, kind in LAYER_KINDS.items():
            blocks = [block_idx for block_idx, other in enumerate(layout) if other == letter]
            heights = [float(values[block_idx]) for block_idx in blocks]
            color = _COLORS.get(letter, _OTHER_COLOR)
            axes.bar(blocks, heights, color=color, label=kind.title if blocks else None)
        axes.set_ylabel(label, fontsize=8)
        axes.set_yscale("log")
        axes.grid(alpha=0.3, axis="y")
    top.legend(fontsize=8)
    top.set_title("Importance of each block")
    bottom.set_xlabel("block")
    return png_bytes(figure, dpi=150)
