"""`hybridize report`: the figures and tables of the page, and its errors."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridize
from hybridize.__main__ import main


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
    labels = {"mmlu": "bundled exam", "mmlu_anatomy": "anatomy", "mmlu_virology": "virology"}

    def model(name: str, values: tuple[float, ...], perplexity: float) -> dict[str, Any]:
        common = {"metric": "acc", "filter": "none"}
        metrics = [
            {"task": task, "label": labels[task], "depth": depth, "is_group": group,
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


def write_files(folder: Path, bench: dict[str, Any], evaluation: dict[str, Any]) -> list[Path]:
    paths = [folder / "bench.json", folder / "eval.json"]
    for path, content in zip(paths, (bench, evaluation), strict=True):
        path.write_text(json.dumps(content))
    return paths


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_files(tmp_path, bench_file(), eval_file())


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


def test_the_table_shows_accuracy_speed_and_cache(files, tmp_path):
    hybridize.report(files, tmp_path / "report.html")
    text = _Text()
    text.feed((tmp_path / "report.html").read_text())
    rows = [text.cells[start : start + 7] for start in range(0, 21, 7)]
    assert rows[1] == ["llama (baseline)", "80.0%", "-", "5.00", "100", "-", "64.5 KiB"]
    assert rows[2] == ["small", "60.0%", "75.0%", "7.25", "175", "1.75 ×", "64.5 KiB"]


def test_every_figure_is_drawn_with_its_command_and_commit(capsys, files, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", *map(str, files), "-o", str(output), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    html = output.read_text()
    assert printed["bytes"] == len(html.encode())
    assert printed["figures"] == [
        "Accuracy against speed",
        "Cache size over prompt length",
        "Prefill speed over prompt length",
        "Decoding speed over prompt length",
        "Accuracy by subject: small against the baseline",
    ]
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert len(captions) == 5
    for caption in captions:
        assert "hybridize bench 9.9, commit abc123, from bench.json" in caption or (
            "hybridize eval 9.9, commit def456, from eval.json" in caption
        )
    for svg in re.findall("<svg.*?</svg>", html):
        ElementTree.fromstring(svg)
    assert "Accuracy by subject" in html
    assert "bundled exam, percent</text>" in html
    assert "mmlu" not in html


def test_the_page_is_self_contained_and_escapes_names(files, tmp_path):
    bench, _ = files
    content = bench_file()
    content["rows"][0]["model"] = "<script>alert(1)<&\"'"
    bench.write_text(json.dumps(content))
    hybridize.report(files, tmp_path / "report.html", title="a <b> & c")
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|https?://|src=|href=|@import|url\(", html)
    assert "<title>a &lt;b&gt; &amp; c</title>" in html


def test_recovery_is_shown_for_several_models(tmp_path):
    content = eval_file()
    other = copy.deepcopy(content["models"]["out/small"])
    other["hybridize"]["model"] = "out/smaller"
    content["models"]["out/smaller"] = other
    (tmp_path / "eval.json").write_text(json.dumps(content))
    result = hybridize.report(tmp_path / "eval.json", tmp_path / "report.html")
    assert result.figures[0] == "Recovery, model by model"
    assert "smaller" in (tmp_path / "report.html").read_text()


def test_every_figure_is_also_written_as_png(capsys, files, tmp_path):
    from matplotlib.image import imread

    arguments = ["report", *map(str, files), "-o", str(tmp_path / "r.html"), "--png", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["pictures"]) == len(printed["figures"]) == 5
    assert printed["pictures"][0] == str(tmp_path / "r-accuracy-against-speed.png")
    for picture in printed["pictures"]:
        assert imread(picture)[..., :3].mean(-1).std() > 0.02
    (tmp_path / "r.html").unlink()
    assert main(arguments) == 2  # a picture exists already
    assert not (tmp_path / "r.html").exists()
    assert main([*arguments, "--force"]) == 0


def test_the_choice_of_attention_blocks_is_drawn(tmp_path):
    conversion = {
        "command": "convert", "created": "2026-01-01", "versions": {"hybridize": "9.9"},
        "source": {"name": "llama", "sha256": {}},
        "metrics": {
            "layout_after": "M-*-M-",
            "sensitivity": [
                {"kept": [0, 1, 2], "kl": 0.0}, {"kept": [1, 2], "kl": 0.1},
                {"kept": [1], "kl": 0.3}, {"kept": [], "kl": 1.5},
            ],
        },
    }  # fmt: skip
    for name in ("hybrid", "distilled"):
        (tmp_path / name).mkdir()
        record = {"format_version": 1, "steps": [conversion], "files": {}}
        (tmp_path / name / "hybridize.json").write_text(json.dumps(record))
    checkpoints = [tmp_path / "hybrid", tmp_path / "distilled"]
    result = hybridize.report(checkpoints, tmp_path / "report.html")
    assert result.figures == (
        "Cost of fewer attention blocks: hybrid",
    )  # both checkpoints record the same choice
    html = (tmp_path / "report.html").read_text()
    assert "numbered from 0: 1." in html
    assert html.count("<circle") == 5  # four points, and the chosen one


def test_importance_is_drawn_from_scores(tmp_path):
    import torch

    from hybridize.checkpoints.checksums import save_checked

    tensors = {
        "blocks": torch.tensor([0.5, 0.0, 2.0]),
        "units.ffn.1": torch.ones(4),
        "units.mamba-heads.0": torch.ones(4),
        "units.attention.2": torch.ones(4),
    }
    about = {"source": "", "tokens": 1, "format": "hybridize-scores"}
    save_checked(tmp_path / "scores", tensors, about)
    result = hybridize.report(tmp_path / "scores", tmp_path / "report.html")
    assert result.figures == ("Importance of each block: scores",)
    html = (tmp_path / "report.html").read_text()
    assert re.findall(r">(\d [\w-]+)</text>", html) == ["0 Mamba-2", "1 MLP", "2 attention"]


def test_other_tensors_are_refused_as_scores(capsys, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"blocks": torch.ones(2)}, tmp_path / "x.safetensors")
    path = tmp_path / "x.safetensors"
    assert main(["report", str(path), "-o", str(tmp_path / "report.html")]) == 2
    assert f"{path}: not a file of scores of prune" in capsys.readouterr().err


def test_history_and_losses_of_a_checkpoint_are_shown(tmp_path):
    from tiny import write_stock

    write_stock(tmp_path / "llama", "llama")
    output = tmp_path / "hybrid"
    assert main(["convert", str(tmp_path / "llama"), "-o", str(output), "--keep", "2"]) == 0
    lines = [{"stage": "kl", "step": n, "validation": 2.0 / (n + 1)} for n in range(5)]
    (output / "distill.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = hybridize.report(output, tmp_path / "report.html")
    assert result.figures == ("Distillation of hybrid: kl",)
    assert "hybridize convert" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a result of"),
        ('{"hybridize": {"command": "convert"}}', "not a result of"),
        ('{"hybridize": {"command": "bench", "version": "1"}}', "damaged: KeyError: 'rows'"),
        ('{"a": NaN}', "NaN cannot be drawn"),
    ],
)
def test_other_files_are_refused_in_one_line(capsys, tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["report", str(path), "-o", str(tmp_path / "report.html")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_an_existing_page_is_replaced_only_with_force(capsys, files, tmp_path):
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
def test_damaged_results_give_a_page_or_a_one_line_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    content = copy.deepcopy(data.draw(st.sampled_from([bench_file(), eval_file()])))
    for _ in range(data.draw(st.integers(1, 3))):
        container: Any = content
        while True:
            keys = list(container) if isinstance(container, dict) else list(range(len(container)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(container[key], dict | list) or data.draw(st.integers(0, 9)) == 0:
                container[key] = data.draw(VALUES)
                break
            container = container[key]
    (folder / "x.json").write_text(json.dumps(content))
    assert main(["report", str(folder / "x.json"), "-o", str(folder / "o.html"), "--quiet"]) in (
        0,
        2,
    )
    assert {path.name for path in folder.iterdir()} <= {"x.json", "o.html"}
