"""The demo as a user runs it, but with smaller sizes. All tests share one run."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from hybridize.__main__ import main
from hybridize.demo import pipeline
from hybridize.errors import InputError

pytestmark = pytest.mark.timeout(900)  # for a machine that is busy with other work

SIZES = pipeline.DemoSizes(
    calibration_tokens=1024,
    align_tokens=8192,
    distill_tokens=8192,
    validation_sequences=2,
    prune_tokens=1024,
    candidates=2,
    questions=2,
    bench={"prompt_len": (16, 64), "batch_size": (2,), "gen_len": 3, "repeats": 1},
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `hybridize demo` writes, with its stdout in ``printed.json``."""
    output = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(pipeline, "SIZES", SIZES)
        assert main(["demo", "-o", str(output), "--json"]) == 0
    (output / "printed.json").write_text(printed.getvalue())
    return output


def test_the_demo_reports_every_model(demo: Path) -> None:
    result = json.loads((demo / "printed.json").read_text())
    original, same, none, hybrid, distilled, pruned, small = result["rows"]
    assert same["difference"] == 0.0
    assert (same["accuracy"], same["perplexity"]) == (original["accuracy"], original["perplexity"])
    assert same["recovery"] == original["recovery"] == 1.0
    assert original["accuracy"] >= 0.85
    assert min(original["knowledge"], original["recall"]) >= 0.85
    assert none["layout"].count("*") == 0
    assert hybrid["layout"].count("*") == 2
    assert none["cache_bytes"] < hybrid["cache_bytes"] < original["cache_bytes"] / 3
    assert none["perplexity"] > hybrid["perplexity"] > original["perplexity"]
    # After two steps the weights have changed. Only the full demo trains long enough to improve.
    assert distilled["layout"] == hybrid["layout"]
    assert distilled["perplexity"] not in (hybrid["perplexity"], original["perplexity"])
    assert pruned["parameters"] <= 0.8 * distilled["parameters"]
    assert small["parameters"] == pruned["parameters"]
    assert small["weight_bytes"] < pruned["weight_bytes"] < distilled["weight_bytes"]
    assert json.loads((demo / "results.json").read_text()) == result
    assert (demo / "attention-2-distilled" / "config.json").exists()
    timed = [row["model"] for row in result["rows"] if row["speed"] is not None]
    assert timed == [none["model"], distilled["model"], pruned["model"], small["model"]]


def test_the_demo_writes_the_report(demo: Path) -> None:
    titles = re.findall("<h2>(.*?)</h2>", (demo / "report.html").read_text("utf-8"))
    assert titles[0] == "Accuracy against speed"
    for beginning in (
        "Recovery, model by model",
        "Cache size over prompt length",
        "Cost of fewer attention blocks: attention-2",
        "Importance of each block",
        "Distillation of attention-2-distilled",
        "Accuracy by subject: attention-2-pruned",
        "History of attention-2-pruned",
    ):
        assert any(title.startswith(beginning) for title in titles), beginning
    pictures = list(demo.glob("report-*.png"))
    assert len(pictures) == len([title for title in titles if not title.startswith("History of ")])


def test_an_existing_directory_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`force` replaces"):
        pipeline.run_demo(output=tmp_path)
    assert list(tmp_path.iterdir()) == []
