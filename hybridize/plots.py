"""Matplotlib figures, and their PNG files."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from hybridize.extras import require_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(extra: str, **options: Any) -> "Figure":
    """Return an empty figure.

    Args:
        extra: the extra in pyproject.toml that installs matplotlib for the caller.
        options: the arguments of matplotlib's ``Figure``; ``figsize`` is in inches.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    require_extra(extra, "matplotlib", "drawing a plot")
    from matplotlib.figure import Figure

    return Figure(**options)


def png_bytes(figure: "Figure", dpi: int | None = None) -> bytes:
    """Return a figure as a PNG file.

    Args:
        figure: the figure.
        dpi: pixels per inch; None for the figure's own.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or "figure")
    return buffer.getvalue()
