"""Drawings as PNG files, in the light colors."""

from textwrap import wrap
from typing import Any

from hybridize.evals.report.layout import Dot, Drawing, Line, Words
from hybridize.evals.report.style import LIGHT
from hybridize.plots import new_figure, png_bytes

_DPI, _SCALE = 100, 2  # two pixels per unit of the drawing
_POINTS = 72 / _DPI  # matplotlib measures line widths and fonts in points
_TITLE, _LINE, _LEGEND = 30, 17, 24
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def to_png(drawing: Drawing, title: str, text: str, origin: str) -> bytes:
    """Draw a chart between its title and text above and its origin below.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    text_lines, origin_lines = wrap(text, 100), wrap(origin, 118)
    top = 12 + _TITLE + _LINE * len(text_lines) + 8
    legend = _LEGEND if drawing.legend else 0
    height = top + drawing.height + legend + _LINE * len(origin_lines) + 12
    figure = new_figure("bench", figsize=(drawing.width / _DPI, height / _DPI), dpi=_DPI * _SCALE)
    figure.set_facecolor(LIGHT["paper"])
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set(xlim=(0, drawing.width), ylim=(height, 0), xticks=[], yticks=[])

    def write(x: float, y: float, words: str, size: float, color: str, **how: Any) -> None:
        # matplotlib would read text between dollar signs as a formula.
        axes.text(x, y, words.replace("$", r"\$"), size=size * _POINTS, color=LIGHT[color], **how)

    write(12, 12 + _TITLE / 2, title, 17, "ink", va="center", weight="bold")
    for number, line in enumerate(text_lines):
        write(12, 12 + _TITLE + _LINE * (number + 0.5), line, 12, "ink", va="center")
    for shape in drawing.shapes:
        match shape:
            case Line(points, style, width):
                shifted = [(x, y + top) for x, y in points]
                axes.plot(*zip(*shifted, strict=True), color=_color(style), lw=width * _POINTS,
                          alpha=_alpha(style), solid_capstyle="butt")  # fmt: skip
            case Dot(x, y, radius, style):
                axes.plot(x, y + top, "o", color=_color(style), ms=2 * radius * _POINTS,
                          mew=0, alpha=_alpha(style))  # fmt: skip
            case Words(x, y, words, anchor, upright):
                how = {"rotation": 90, "va": "center", "ha": "center"}
                if not upright:
                    how = {"va": "baseline", "ha": _ANCHORS[anchor]}
                write(x, y + top, words, 12, "soft", **how)
    left, middle = 18.0, top + drawing.height + _LEGEND / 2
    for color, name in drawing.legend:
        axes.plot(left, middle, "o", color=_color(color), ms=9 * _POINTS, mew=0)
        write(left + 10, middle, name, 12, "ink", va="center")
        left += 34 + 6.6 * len(name)
    for number, line in enumerate(origin_lines):
        below = top + drawing.height + legend + _LINE * (number + 0.5)
        write(12, below, line, 10, "soft", va="center")
    return png_bytes(figure)


def _color(style: str) -> str:
    return LIGHT[{"grid": "rule", "axis": "soft", "faint": "soft"}.get(style, style)]


def _alpha(style: str) -> float:
    return 0.45 if style == "faint" else 1.0
