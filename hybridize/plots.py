"""Matplotlib figures, and their PNG files."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from hybridize.extras import require_extra
from hybridize.file_names import utf8

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
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(utf8(text.get_text()).decode())  # a name may not be UTF-8
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or "figure")
    return buffer.getvalue()
