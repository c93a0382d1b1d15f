"""Lay out a chart: its shapes and their positions, which `svg` and `png` draw."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hybridize.evals.report.charts import Axis, BarChart, Chart, XYChart

COLORS = 6  # styles c0 to c5
_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 46
_BAR_LEFT, _BAR_HEIGHT = 190, 22
_LETTER, _LINE = 6.4, 14  # approximate width of a letter and height of a line, in pixels


@dataclass(frozen=True)
class Line:
    """A polyline; ``style`` is ``grid``, ``axis``, ``faint`` or ``c0`` to ``c5``."""

    points: tuple[tuple[float, float], ...]
    style: str
    width: float = 1


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    style: str


@dataclass(frozen=True)
class Words:
    """A line of text; ``anchor`` is ``start``, ``middle`` or ``end``. ``upright`` is vertical."""

    x: float
    y: float
    text: str
    anchor: str
    upright: bool = False


@dataclass(frozen=True)
class Drawing:
    """Shapes in an area of ``width`` × ``height`` pixels, with the origin at the top left.

    ``legend`` has pairs of a color and its meaning.
    """

    width: float
    height: float
    shapes: tuple[Line | Dot | Words, ...]
    legend: tuple[tuple[str, str], ...]


def lay_out(chart: Chart) -> Drawing:
    """Return the drawing of a chart."""
    return _xy(chart) if isinstance(chart, XYChart) else _bars(chart)


def _xy(chart: XYChart) -> Drawing:
    xs = [point[0] for one in chart.series for point in one.points]
    ys = [point[1] for one in chart.series for point in one.points]
    to_x, x_ticks = _scale(xs, chart.x, _LEFT, _WIDTH - _RIGHT)
    to_y, y_ticks = _scale(ys, chart.y, _HEIGHT - _BOTTOM, _TOP)
    shapes: list[Line | Dot | Words] = list(
        _axes(
            chart.x,
            chart.y,
            [(to_x(t), chart.x.format_tick(t)) for t in x_ticks],
            [(to_y(t), chart.y.format_tick(t)) for t in y_ticks],
        )
    )
    for index, one in enumerate(chart.series):
        color = f"c{index % COLORS}"
        dots = [(to_x(a), to_y(b)) for a, b in one.points]
        if chart.lines:
            shapes.append(Line(tuple(dots), color, 2))
        shapes += [Dot(a, b, 4, color) for a, b in dots]
        if one.labels:
            shapes += _labels(dots, one.labels)
    names = [(f"c{n % COLORS}", one.name) for n, one in enumerate(chart.series)]
    no_legend = len(names) < 2 or any(one.labels for one in chart.series)
    return Drawing(_WIDTH, _HEIGHT, tuple(shapes), () if no_legend else tuple(names))


def _labels(dots: Sequence[tuple[float, float]], labels: Sequence[str]) -> Iterator[Words]:
    """Place each label next to its dot so that it overlaps neither dots nor other labels."""
    taken: list[tuple[float, float, float]] = [(x - 6, x + 6, y + 4) for x, y in dots]

    def is_free(start: float, end: float, line: float) -> bool:
        if start < _LEFT or end > _WIDTH or not _TOP < line < _HEIGHT - _BOTTOM:
            return False
        return not any(a < end and start < b and abs(line - c) < _LINE for a, b, c in taken)

    for (x, y), label in sorted(zip(dots, labels, strict=True), key=lambda one: one[0][1]):
        width = _LETTER * len(label)
        right, left = x + 8, x - 8 - width
        spots = [(right, y + 4), (left, y + 4), (x - width / 2, y - 8), (x - width / 2, y + 18)]
        shifts = [distance * sign for distance in range(8, 240, 8) for sign in (1, -1)]
        spots += [(side, y + 4 + shift) for shift in shifts for side in (right, left)]
        fallback = (right if x < _WIDTH / 2 else left, y + 4)  # if there is no free spot
        start, line = next((s for s in spots if is_free(s[0], s[0] + width, s[1])), fallback)
        taken.append((start, start + width, line))
        # The width is approximate, so the label is anchored at its end next to the dot.
        anchor = "start" if start > x else "end" if start + width < x else "middle"
        yield Words(
            start + width * {"start": 0, "middle": 0.5, "end": 1}[anchor], line, label, anchor
        )


def _bars(chart: BarChart) -> Drawing:
    bottom = _TOP + _BAR_HEIGHT * len(chart.bars)
    ends = [end for bar in chart.bars for end in (bar.value, *(bar.interval or ()))]
    axis = chart.axis
    if axis.log:
        least = min((end for end in ends if end > 0), default=1.0)
        ends = [max(end, least) for end in ends]
    else:
        ends.append(0.0)
        axis = replace(axis, from_zero=min(ends) == 0)
    scale, ticks = _scale(ends, axis, _BAR_LEFT, _WIDTH - _RIGHT)

    def to_x(value: float) -> float:
        return scale(max(value, min(ends)))

    shapes: list[Line | Dot | Words] = []
    for tick in ticks:
        x = to_x(tick)
        shapes += [Line(((x, _TOP), (x, bottom)), "grid")]
        shapes += [Words(x, bottom + 16, axis.format_tick(tick), "middle")]
    start = _BAR_LEFT if axis.log else to_x(0)
    shapes.append(Line(((start, _TOP), (start, bottom)), "axis"))
    for index, bar in enumerate(chart.bars):
        y = _TOP + _BAR_HEIGHT * (index + 0.5)
        style = f"c{bar.color % COLORS}" if bar.strong else "faint"
        shapes.append(Words(_BAR_LEFT - 8, y + 4, bar.name[:30], "end"))
        if bar.interval is None:
            shapes.append(Line(((start, y), (to_x(bar.value), y)), style, 12))
        else:
            low, high = bar.interval
            shapes.append(Line(((to_x(low), y), (to_x(high), y)), style, 2))
            shapes.append(Dot(to_x(bar.value), y, 5, style))
    shapes.append(Words((_BAR_LEFT + _WIDTH) / 2, bottom + 36, axis.label, "middle"))
    legend = tuple((f"c{n % COLORS}", name) for n, name in enumerate(chart.legend))
    return Drawing(_WIDTH, bottom + 44, tuple(shapes), legend)


def _scale(
    values: Sequence[float], axis: Axis, start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return a function from values to positions, and the values of the ticks."""
    low, high = min(values), max(values)
    if axis.log and low > 0:
        a, b = math.log2(low), math.log2(high)
        pad = (b - a) * 0.04 or 0.5
        a, b = a - pad, b + pad
        first, last = math.ceil(a), math.floor(b)
        every = max(1, (last - first) // 6 + 1)
        ticks = [2.0**power for power in range(first, last + 1, every)] or [low]
        return (lambda value: start + (math.log2(value) - a) / (b - a) * (end - start)), ticks
    if axis.from_zero:
        low = min(low, 0.0)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if axis.from_zero and low == 0 else low - pad), high + pad
    spacing = _round_up((high - low) / 6, axis.base)
    ticks = [n * spacing for n in range(math.ceil(low / spacing), math.floor(high / spacing) + 1)]
    return (lambda value: start + (value - low) / (high - low) * (end - start)), ticks


def _round_up(least: float, base: int) -> float:
    """Return the next round number that is not below ``least``."""
    power = float(base) ** math.floor(math.log(least, base))
    multiples = (1, 2, 5, 10) if base == 10 else [2**n for n in range(11)]
    return next((power * m for m in multiples if power * m >= least), power * base)


def _axes(
    x: Axis, y: Axis, x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]]
) -> Iterator[Line | Words]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for position, text in x_ticks:
        yield Line(((position, _TOP), (position, bottom)), "grid")
        yield Words(position, bottom + 16, text, "middle")
    for position, text in y_ticks:
        yield Line(((_LEFT, position), (right, position)), "grid")
        yield Words(_LEFT - 6, position + 4, text, "end")
    yield Line(((_LEFT, _TOP), (_LEFT, bottom), (right, bottom)), "axis")
    yield Words((_LEFT + right) / 2, _HEIGHT - 8, x.label, "middle")
    yield Words(14, (_TOP + bottom) / 2, y.label, "middle", upright=True)
