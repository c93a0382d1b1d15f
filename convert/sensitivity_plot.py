"""The plot of a selection's measurements."""

from hybridize.conversion.measurements import SelectionCurve
from hybridize.plots import new_figure, png_bytes


def draw_curve(curve: SelectionCurve, kept: tuple[int, ...]) -> bytes:
    """Plot the measured losses against the number of attention blocks kept; return a PNG.

    Args:
        curve: the measurements.
        kept: the chosen attention blocks; their point is marked.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    counts = [len(point.kept) for point in curve.points]
    divergences = [point.kl for point in curve.points]
    figure = new_figure("train", figsize=(6.4, 4.0), layout="constrained")
    from matplotlib.ticker import MaxNLocator  # the line above checks for matplotlib

    axes = figure.add_subplot()
    axes.plot(counts, divergences, marker="o", markersize=4, color="#2a6f97")
    chosen = next(point for point in curve.points if point.kept == kept)
    label = f"kept: {','.join(map(str, kept)) or 'none'} ({chosen.kl:.3f} nats)"
    axes.plot(len(kept), chosen.kl, "o", markersize=9, color="#d1495b", label=label)
    recall = [point.recall for point in curve.points if point.recall is not None]
    if recall:
        label = "rise of the loss on retrieved tokens, nats per such token"
        axes.plot(counts, recall, marker="s", markersize=4, color="#e09f3e", label=label)
    axes.set_xlabel("attention blocks kept")
    axes.set_ylabel("KL divergence from the teacher, nats per token")
    axes.set_title("Cost of removing attention blocks, before distillation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=min(0.0, *recall, *divergences))
    axes.grid(alpha=0.3)
    axes.legend()
    return png_bytes(figure, dpi=150)
