"""The plot of state norms, memory and attention distances."""

from hybridize.inspection.state_norms import StateReport
from hybridize.plots import new_figure, png_bytes


def draw_states(report: StateReport) -> bytes:
    """Plot state norms over the text, memory by head, and attention by distance; return a PNG.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    panels = (["norms", "lengths"] if report.mamba else []) + (["span"] if report.attention else [])
    figure = new_figure("bench", figsize=(5.2 * len(panels), 4), layout="constrained")
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    colors = [f"C{number % 10}" for number in range(len(report.mamba))]
    for memory, color in zip(report.mamba, colors, strict=True):
        name = f"block {memory.block}"
        axes["norms"].plot(report.positions, memory.norms, color=color, label=name)
        heads = sorted(memory.lengths)
        axes["lengths"].plot(range(1, len(heads) + 1), heads, "o-", ms=4, color=color, label=name)
    if report.mamba:
        axes["norms"].set(title="norm of the SSM state", xlabel="tokens read", ylim=(0, None))
        axes["norms"].legend(fontsize="small")
        axes["lengths"].set(
            title="memory of each head, tokens to 1/e", xlabel="head, by length", yscale="log"
        )
        axes["lengths"].axhline(report.tokens, color="#5b5b5b", ls=":", lw=1)
    if report.attention:
        longest = max(len(span.shares) for span in report.attention)
        rows = [[*span.shares, *[0.0] * (longest - len(span.shares))] for span in report.attention]
        image = axes["span"].imshow(rows, aspect="auto", cmap="Blues", vmin=0)
        names = ["0", *(f"{2**power}" for power in range(longest - 1))]
        axes["span"].set(title="share of attention by distance", xlabel="tokens back, from")
        axes["span"].set_xticks(range(longest), names)
        axes["span"].set_yticks(
            range(len(rows)), [f"block {span.block}" for span in report.attention]
        )
        figure.colorbar(image, ax=axes["span"])
    return png_bytes(figure, dpi=130)
