"""A report's charts: positions follow the values, labels do not overlap, colors have contrast."""

from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.evals.report.charts import Axis, Bar, BarChart, Series, XYChart
from hybridize.evals.report.layout import Dot, Drawing, Line, Words, lay_out
from hybridize.evals.report.style import DARK, LIGHT, STYLE
from hybridize.evals.report.svg import to_svg


def points_chart(points: list[tuple[float, float]], labels: tuple[str, ...] = ()) -> Drawing:
    axes = {"x": Axis("x", from_zero=True), "y": Axis("y")}
    return lay_out(XYChart([Series("", points, labels)], **axes, lines=False))


def test_positions_of_points_follow_their_values():
    drawing = points_chart([(0.0, 10.0), (50.0, 20.0), (100.0, 30.0)])
    dots = [
        (float(c.attrib["cx"]), float(c.attrib["cy"]))
        for c in ElementTree.fromstring(to_svg(drawing)).iter("circle")
    ]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x2
    assert y0 > y2


def extent(words: Words) -> tuple[float, float]:
    width = 6.4 * len(words.text)
    start = words.x - width * {"start": 0, "middle": 0.5, "end": 1}[words.anchor]
    return start, start + width


def overlap(one: Words, other: Words) -> bool:
    (a, b), (c, d) = extent(one), extent(other)
    return a < d - 0.1 and c < b - 0.1 and abs(one.y - other.y) < 13.9


@pytest.mark.parametrize(
    "points",
    [
        [(91.0, 91.7), (120.0, 91.7), (134.0, 100.0), (177.0, 91.7), (270.0, 22.0)],
        [(10.0, 1.0)] * 3 + [(10.2, 1.0), (0.1, 2.0)],
        [(1.0, 1.0), (1.0, 1.0)],
    ],
)
def test_labels_do_not_overlap(points):
    labels = tuple(f"a-model-of-{n}-blocks" for n in range(len(points)))
    drawing = points_chart(points, labels)
    words = [s for s in drawing.shapes if isinstance(s, Words) and s.text in labels]
    assert len(words) == len(labels)
    assert not any(overlap(one, other) for one, other in combinations(words, 2))
    for word in words:
        assert extent(word)[0] > 0
        assert extent(word)[1] <= drawing.width


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e3, 1e3)), min_size=1, max_size=12))
def test_every_shape_is_inside_the_drawing(points):
    drawing = points_chart(points, tuple("m" for _ in points))
    for shape in drawing.shapes:
        for x, y in shape.points if isinstance(shape, Line) else [(shape.x, shape.y)]:
            assert 0 <= x <= drawing.width
            assert 0 <= y <= drawing.height


def bar_ends(chart: BarChart) -> list[float]:
    lines = [s for s in lay_out(chart).shapes if isinstance(s, Line) and s.width == 12]
    return [line.points[1][0] - line.points[0][0] for line in lines]


def test_bar_lengths_are_proportional_to_their_values():
    one, two, four = bar_ends(BarChart([Bar("a", 1), Bar("b", 2), Bar("c", 4)], Axis("")))
    assert two == pytest.approx(2 * one)
    assert four == pytest.approx(4 * one)


def test_logarithmic_bars_grow_by_equal_lengths():
    chart = BarChart([Bar("a", v) for v in (0.01, 0.1, 1, 10, 0)], Axis("", log=True))
    a, b, c, d, nothing = bar_ends(chart)
    assert b - a == pytest.approx(c - b) == pytest.approx(d - c)
    assert nothing == a > 0


def test_intervals_reach_from_low_to_high():
    drawing = lay_out(BarChart([Bar("a", -2.0, (-3.0, 1.0), strong=False)], Axis("")))
    (dot,) = (shape for shape in drawing.shapes if isinstance(shape, Dot))
    (line,) = (s for s in drawing.shapes if isinstance(s, Line) and s.style == "faint")
    (low, _), (high, _) = line.points
    assert (dot.x - low) / (high - low) == pytest.approx(0.25)


def test_ticks_of_bytes_are_powers_of_two_apart():
    chart = XYChart([Series("", [(1.0, 0.0), (2.0, 34e6)])], Axis("x"),
                    Axis("y", format_tick="{:.0f}".format, from_zero=True, base=1024))  # fmt: skip
    ticks = [int(s.text) for s in lay_out(chart).shapes
             if isinstance(s, Words) and s.anchor == "end"]  # fmt: skip
    assert ticks == [0, 2**23, 2**24, 3 * 2**23, 2**25]


def contrast(first: str, second: str) -> float:
    """WCAG 2.1's contrast ratio of two colors like #1d2430."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_have_enough_contrast(colors):
    paper = colors["paper"]
    assert contrast(paper, colors["ink"]) > 7
    assert contrast(paper, colors["soft"]) > 4.5
    assert min(contrast(paper, colors[f"c{n}"]) for n in range(6)) > 3  # graphics
    assert all(f"--{name}: {color}" in STYLE for name, color in colors.items())
