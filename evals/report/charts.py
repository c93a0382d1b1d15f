"""Charts as data, independent of how they are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """Points of one color. The ``labels``, if any, are shown next to the points."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: the label, with the unit.
        log: whether the scale is logarithmic.
        format_tick: returns the text for a value.
        from_zero: whether the axis starts at 0.
        base: ticks of a linear scale are round numbers to this base: 10, or 1024 for bytes.
    """

    label: str
    log: bool = False
    format_tick: Callable[[float], str] = "{:,.4g}".format
    from_zero: bool = False
    base: int = 10


@dataclass(frozen=True)
class XYChart:
    """Points in a plane; ``lines`` joins those of each series."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    lines: bool = True


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Attributes:
        name: the text on the left.
        value: the end of the bar, or the dot if there is an interval.
        interval: low and high; None without one.
        strong: whether it has its full color; other bars are faint.
        color: the index of its color on the page.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    strong: bool = True
    color: int = 0


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars that start at zero, or at the left edge of a logarithmic axis.

    Attributes:
        bars: from top to bottom.
        axis: of the values. On a logarithmic axis, values of 0 and less are drawn like the
            smallest positive value.
        legend: the meaning of each color, in order; empty if there is only one.
    """

    bars: Sequence[Bar]
    axis: Axis
    legend: Sequence[str] = ()


Chart = XYChart | BarChart
