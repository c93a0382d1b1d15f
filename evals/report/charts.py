"""What a chart shows, whatever draws it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """Points of one color, joined by a line or not; ``labels`` stand beside them."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        label: with the unit.
        log: in powers, rather than even steps.
        form: makes the text at a tick.
        zero: whether the axis begins at 0.
        base: even steps are round in multiples of its powers: 1024 for bytes.
    """

    label: str
    log: bool = False
    form: Callable[[float], str] = "{:,.4g}".format
    zero: bool = False
    base: int = 10


@dataclass(frozen=True)
class XYChart:
    """Points against two axes, joined by lines or not."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    lines: bool = True


@dataclass(frozen=True)
class Bar:
    """A value, with an interval or none, and whether it is set off from the others.

    Attributes:
        name: stands on the left.
        value: where the bar ends, or where the dot is if there is an interval.
        interval: low and high.
        strong: in full color.
        color: which of the page's.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    strong: bool = True
    color: int = 0


@dataclass(frozen=True)
class BarChart:
    """Values one below the other, against a line at zero, or from the left in powers.

    Attributes:
        bars: from the top.
        axis: of the values; in powers, all that is not above 0 is as small as the smallest.
        legend: what the colors mean, from the first on; nothing if there is one.
    """

    bars: Sequence[Bar]
    axis: Axis
    legend: Sequence[str] = ()


Chart = XYChart | BarChart
