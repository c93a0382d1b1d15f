"""Small charts as SVG whose colours are the page's, so that they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 46
COLORS = 6  # classes c0 to c5 of the page's style


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line or not; ``labels`` stand beside them."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Bar:
    """A value with an interval, and whether it is set off from the others."""

    name: str
    value: float
    low: float
    high: float
    strong: bool = True


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        label: with the unit.
        log: in powers, rather than even steps.
        form: makes the text at a tick.
        zero: whether the axis begins at 0.
    """

    label: str
    log: bool = False
    form: Callable[[float], str] = "{:,.4g}".format
    zero: bool = False


def xy_chart(series: Sequence[Series], x: Axis, y: Axis, *, lines: bool = True) -> str:
    """Draw points against two axes, with a legend where there are several series."""
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series for point in one.points]
    to_x, x_ticks = _scale(xs, x, _LEFT, WIDTH - _RIGHT)
    to_y, y_ticks = _scale(ys, y, HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, [(to_x(t), x.form(t)) for t in x_ticks],
                   [(to_y(t), y.form(t)) for t in y_ticks])]  # fmt: skip
    for index, one in enumerate(series):
        color = f"c{index % COLORS}"
        places = [(to_x(a), to_y(b)) for a, b in one.points]
        if lines:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline class="line {color}" points="{path}"/>')
        for number, (a, b) in enumerate(places):
            parts.append(f'<circle class="dot {color}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>')
            if one.labels:
                # Beside the dot, on the side where there is room.
                side, anchor = (8, "start") if a < WIDTH * 0.6 else (-8, "end")
                parts.append(_text(a + side, b - 6, one.labels[number], anchor))
    return _svg(parts, HEIGHT) + _legend(series)


def bar_chart(bars: Sequence[Bar], label: str, form: Callable[[float], str]) -> str:
    """Draw values with their intervals, one below the other, against a line at zero."""
    left, step = 190, 22
    bottom = _TOP + step * len(bars)
    ends = [0.0, *(end for bar in bars for end in (bar.low, bar.high))]
    to_x, ticks = _scale(ends, Axis(label), left, WIDTH - _RIGHT)
    parts = []
    for tick in ticks:
        x = to_x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, form(tick), "middle"))
    zero = to_x(0)
    parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{bottom}"/>')
    for index, bar in enumerate(bars):
        y, color = _TOP + step * (index + 0.5), "c0" if bar.strong else "faint"
        parts.append(_text(left - 8, y + 4, bar.name[:30], "end"))
        parts.append(
            f'<line class="line {color}" x1="{to_x(bar.low):.1f}" x2="{to_x(bar.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="dot {color}" cx="{to_x(bar.value):.1f}" cy="{y:.1f}" r="5"/>'
        )
    parts.append(_text((left + WIDTH) / 2, bottom + 36, label, "middle"))
    return _svg(parts, bottom + 44)


def _scale(
    values: Sequence[float], axis: Axis, start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return what maps values to places, and round values to mark."""
    low, high = min(values), max(values)
    if axis.log and low > 0:
        a, b = math.log2(low), math.log2(high)
        pad = (b - a) * 0.04 or 0.5
        a, b = a - pad, b + pad
        first, last = math.ceil(a), math.floor(b)
        every = max(1, (last - first) // 6 + 1)
        ticks = [2.0**power for power in range(first, last + 1, every)] or [low]
        return (lambda value: start + (math.log2(value) - a) / (b - a) * (end - start)), ticks
    if axis.zero:
        low = min(low, 0.0)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if axis.zero and low == 0 else low - pad), high + pad
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 6), 10)
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return (lambda value: start + (value - low) / (high - low) * (end - start)), ticks


def _axes(
    x: Axis, y: Axis, x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]]
) -> str:
    bottom, right, parts = HEIGHT - _BOTTOM, WIDTH - _RIGHT, []
    for place, text in x_ticks:
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" '
                     f'y1="{_TOP}" y2="{bottom}"/>')  # fmt: skip
        parts.append(_text(place, bottom + 16, text, "middle"))
    for place, text in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" '
                     f'y1="{place:.1f}" y2="{place:.1f}"/>')  # fmt: skip
        parts.append(_text(_LEFT - 6, place + 4, text, "end"))
    parts.append(f'<polyline class="axis" points="{_LEFT},{_TOP} {_LEFT},{bottom} '
                 f'{right},{bottom}"/>')  # fmt: skip
    parts.append(_text((_LEFT + right) / 2, HEIGHT - 8, x.label, "middle"))
    middle = (_TOP + bottom) / 2
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
                 f"{escape(y.label)}</text>")  # fmt: skip
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2 or any(one.labels for one in series):
        return ""
    entries = (
        f'<span><i class="key c{index % COLORS}"></i>{escape(one.name)}</span>'
        for index, one in enumerate(series)
    )
    return f'<p class="legend">{"".join(entries)}</p>'
