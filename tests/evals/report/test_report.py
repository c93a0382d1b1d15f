"""`hybridize report`: what it shows of what commands wrote, and what it refuses."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridize
from hybridize.__main__ import main
from hybridize.evals.report.page import STYLE
from hybridize.evals.report.svg import Axis, Series, xy_chart

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value * 0.9, "high": value * 1.1}


def bench_rows() -> list[dict[str, Any]]:
    return [
        {
            "model": f"out/{model}",
            "backend": "hybridize",
            "point": {"prompt_len": length, "gen_len": 8, "batch_size": 1},
            "prefill": spread(1000.0 * speed),
            "decode": spread(100.0 * speed),
            "ratios": None if speed == 1 else {"decode": spread(speed)},
            "kv_bytes": length * 64,
            "state_bytes": 512,
        }
        for length in (128, 1024)
        for model, speed in (("llama", 1), ("small", 1.75))
    ]


def bench_file() -> dict[str, Any]:
    ours = {"version": "9.9", "command": "bench", "commit": "abc123"}
    return {"hybridize": ours, "rows": bench_rows()}


def eval_file() -> dict[str, Any]:
    tasks = (("mmlu", 0, True), ("mmlu_anatomy", 1, False), ("mmlu_virology", 1, False))

    def model(name: str, values: tuple[float, ...], perplexity: float) -> dict[str, Any]:
        common = {"metric": "acc", "filter": "none"}
        metrics = [
            {"task": task, "label": task.removeprefix("mmlu_"), "depth": depth, "is_group": group,
             "value": value, "stderr": 0.02, **common}
            for (task, depth, group), value in zip(tasks, values, strict=True)
        ]  # fmt: skip
        compared = [
            {"task": task, "difference": value - 0.8, "recovery": value / 0.8, "p_value": 0.01,
             **common}
            for (task, *_), value in zip(tasks, values, strict=True)
        ]  # fmt: skip
        ours = {
            "version": "9.9", "command": "eval", "model": name, "baseline": "out/llama",
            "metrics": metrics, "comparisons": [] if name == "out/llama" else compared,
            "perplexity": {"perplexity": perplexity},
        }  # fmt: skip
        return {"git_hash": "def456", "hybridize": ours}

    return {
        "models": {
            "out/llama": model("out/llama", (0.8, 0.8, 0.8), 5.0),
            "out/small": model("out/small", (0.6, 0.7, 0.5), 7.25),
        }
    }


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    bench, evaluation = tmp_path / "bench.json", tmp_path / "eval.json"
    bench.write_text(json.dumps(bench_file()))
    evaluation.write_text(json.dumps(eval_file()))
    return bench, evaluation


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells.append(data)
            self.inside = False


def test_the_table_says_what_was_gained_and_lost(files, tmp_path):
    hybridize.report(files, tmp_path / "report.html")
    text = _Text()
    text.feed((tmp_path / "report.html").read_text())
    rows = [text.cells[start : start + 7] for start in range(0, 21, 7)]
    assert rows[1] == ["llama (baseline)", "80.0%", "-", "5.00", "100", "-", "64.5 KiB"]
    assert rows[2] == ["small", "60.0%", "75.0%", "7.25", "175", "1.75 ×", "64.5 KiB"]


def test_every_figure_is_drawn_and_names_command_and_commit(capsys, files, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", *map(str, files), "-o", str(output), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    html = output.read_text()
    assert printed["bytes"] == len(html.encode())
    assert printed["figures"] == [
        "Accuracy against speed",
        "What small lost and gained, subject by subject",
        "Reading a prompt: speed over context length",
        "Writing: speed over context length",
        "Memory against context length",
    ]
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert len(captions) == 5
    for caption in captions:
        assert "hybridize bench 9.9, commit abc123, from bench.json" in caption or (
            "hybridize eval 9.9, commit def456, from eval.json" in caption
        )
    for svg in re.findall("<svg.*?</svg>", html):
        ElementTree.fromstring(svg)
    assert "subject by subject" in html


def test_the_page_is_self_contained_and_escapes_names(files, tmp_path):
    bench, _ = files
    content = bench_file()
    content["rows"][0]["model"] = "<script>alert(1)<&\"'"
    bench.write_text(json.dumps(content))
    hybridize.report(files, tmp_path / "report.html", title="a <b> & c")
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|https?://|src=|href=|@import|url\(", html)
    assert "<title>a &lt;b&gt; &amp; c</title>" in html


def test_points_lie_where_their_values_say():
    chart = xy_chart(
        [Series("", [(0.0, 10.0), (50.0, 20.0), (100.0, 30.0)])],
        Axis("x", zero=True), Axis("y"), lines=False,
    )  # fmt: skip
    places = [
        (float(c.attrib["cx"]), float(c.attrib["cy"]))
        for c in ElementTree.fromstring(chart).iter("circle")
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x2
    assert y0 > y2


def test_a_checkpoint_shows_its_history_and_losses(tmp_path):
    from tiny import write_stock

    write_stock(tmp_path / "llama", "llama")
    output = tmp_path / "hybrid"
    assert main(["convert", str(tmp_path / "llama"), "-o", str(output), "--keep", "2"]) == 0
    lines = [{"stage": "kl", "step": n, "validation": 2.0 / (n + 1)} for n in range(5)]
    (output / "distill.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = hybridize.report(output, tmp_path / "report.html")
    assert result.figures == ("Distilling hybrid: kl",)
    assert "hybridize convert" in (tmp_path / "report.html").read_text()


def contrast(first: str, second: str) -> float:
    """WCAG 2.1's contrast ratio of two colours like #1d2430."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_light_and_dark():
    light, dark = (
        dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", part)) for part in STYLE.split("@media")
    )
    for colors in (light, dark):
        paper = colors["--paper"]
        assert contrast(paper, colors["--ink"]) > 7
        assert contrast(paper, colors["--soft"]) > 4.5
        assert min(contrast(paper, colors[f"--c{n}"]) for n in range(6)) > 3  # graphics


def test_a_browser_draws_it_in_light_and_dark(files, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    from matplotlib.image import imread

    hybridize.report(files, tmp_path / "light.html")
    html = (tmp_path / "light.html").read_text()
    dark = html.replace("@media (prefers-color-scheme: dark)", "@media all")
    (tmp_path / "dark.html").write_text(dark)
    shades = {}
    for name in ("light", "dark"):
        picture = tmp_path / f"{name}.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,2400",
             f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}",
             (tmp_path / f"{name}.html").as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        pixels = imread(picture)[..., :3].mean(-1)
        shades[name] = float(pixels[0, 0])
        assert pixels.std() > 0.02  # there is something on the paper
    assert shades["light"] > 0.9
    assert shades["dark"] < 0.2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a file that"),
        ('{"hybridize": {"command": "convert"}}', "not a file that"),
        ('{"hybridize": {"command": "bench", "version": "1"}}', "damaged: KeyError: 'rows'"),
        ('{"a": NaN}', "NaN cannot be drawn"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(capsys, tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["report", str(path), "-o", str(tmp_path / "report.html")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_an_existing_page_stays_without_force(capsys, files, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("mine")
    assert main(["report", str(files[0]), "-o", str(output)]) == 2
    assert output.read_text() == "mine"
    assert main(["report", str(files[0]), "-o", str(output), "--force"]) == 0
    assert output.read_text().startswith("<!doctype html>")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(allow_nan=False),
    st.text(max_size=4), st.just([]), st.just({}),
)  # fmt: skip


@given(st.data())
def test_damaged_results_give_a_page_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    content = copy.deepcopy(data.draw(st.sampled_from([bench_file(), eval_file()])))
    for _ in range(data.draw(st.integers(1, 3))):
        where: Any = content
        while True:
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(where[key], dict | list) or data.draw(st.integers(0, 9)) == 0:
                where[key] = data.draw(VALUES)
                break
            where = where[key]
    (folder / "x.json").write_text(json.dumps(content))
    assert main(["report", str(folder / "x.json"), "-o", str(folder / "o.html"), "--quiet"]) in (
        0,
        2,
    )
    assert {path.name for path in folder.iterdir()} <= {"x.json", "o.html"}
