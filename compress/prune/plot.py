"""The plot of the importance of a model's blocks."""

from io import BytesIO

from hybridize.compress.prune.scores import Scores
from hybridize.extras import require_extra
from hybridize.modeling.layers.kinds import LAYER_KINDS

_COLORS = {"attention": "#d1495b", "mamba": "#2a6f97", "mlp": "#9aa5b1"}
_LABELS = {"attention": "attention", "mamba": "Mamba-2", "mlp": "MLP"}


def draw_importance(scores: Scores, layout: str) -> bytes:
    """Return a PNG with the importance and the influence of each block.

    Args:
        scores: the measured importance.
        layout: the model's pattern.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    require_extra("train", "matplotlib", "drawing a plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 0.16 * len(layout)), 4.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, values, label in (
        (top, scores.blocks, "KL if skipped, nats per token"),
        (bottom, scores.influence, "influence, 1 - cosine"),
    ):
        for kind, color in _COLORS.items():
            blocks = [i for i, letter in enumerate(layout) if LAYER_KINDS[letter].name == kind]
            heights = [float(values[block_idx]) for block_idx in blocks]
            axes.bar(blocks, heights, color=color, label=_LABELS[kind] if blocks else None)
        axes.set_ylabel(label, fontsize=8)
        axes.set_yscale("log")
        axes.grid(alpha=0.3, axis="y")
    top.legend(fontsize=8)
    top.set_title("Importance of each block")
    bottom.set_xlabel("block")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
