"""The picture of what matters in a model."""

from io import BytesIO

from hybridize.compress.prune.scores import Scores
from hybridize.extras import require_extra
from hybridize.modeling.layout import KINDS

_COLORS = {"attention": "#d1495b", "mamba": "#2a6f97", "mlp": "#9aa5b1"}
_WORDS = {"attention": "attention", "mamba": "Mamba-2", "mlp": "MLP"}


def draw_importance(scores: Scores, layout: str) -> bytes:
    """Draw blocks against importance, as a PNG.

    Args:
        scores: what was measured.
        layout: the model's pattern.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    require_extra("train", "matplotlib", "drawing a plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 0.16 * len(layout)), 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, values, title in (
        (above, scores.blocks, "KL when skipped, nats per token"),
        (below, scores.influence, "influence, 1 - cosine"),
    ):
        for kind, color in _COLORS.items():
            places = [i for i, letter in enumerate(layout) if KINDS[letter] == kind]
            heights = [float(values[place]) for place in places]
            axes.bar(places, heights, color=color, label=_WORDS[kind] if places else None)
        axes.set_ylabel(title, fontsize=8)
        axes.set_yscale("log")
        axes.grid(alpha=0.3, axis="y")
    above.legend(fontsize=8)
    above.set_title("What each block is worth")
    below.set_xlabel("block")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
