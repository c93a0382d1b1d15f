"""Drawings as SVG with the colors of the page, so that they follow light and dark mode."""

from html import escape

from hybridize.evals.report.layout import Dot, Drawing, Line, Words


def to_svg(drawing: Drawing) -> str:
    """Return an ``<svg>`` element, followed by a paragraph with the legend if there is one."""
    shapes = "".join(_element(shape) for shape in drawing.shapes)
    svg = f'<svg viewBox="0 0 {drawing.width:.0f} {drawing.height:.0f}" role="img">{shapes}</svg>'
    if not drawing.legend:
        return svg
    entries = (
        f'<span><i class="key {color}"></i>{escape(name)}</span>' for color, name in drawing.legend
    )
    return f'{svg}<p class="legend">{"".join(entries)}</p>'


def _element(shape: Line | Dot | Words) -> str:
    match shape:
        case Line(points, style, width):
            coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return f'<polyline class="{style}" stroke-width="{width:g}" points="{coordinates}"/>'
        case Dot(x, y, radius, style):
            return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'
        case Words(x, y, text, anchor, upright):
            position = f'x="{x:.1f}" y="{y:.1f}"'
            if upright:
                position = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"'
            return f'<text {position} text-anchor="{anchor}">{escape(text)}</text>'
