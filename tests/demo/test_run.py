"""The demo as a user runs it, on fewer tokens."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from hybridize.__main__ import main
from hybridize.demo import run
from hybridize.errors import InputError

pytestmark = pytest.mark.timeout(900)  # a minute or two; for a machine that is busy as well


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hybridize demo` leaves behind, with what it printed as ``printed.json``."""
    output = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    speed = {"prompt_len": (16, 64), "batch_size": (2,), "gen_len": 3, "repeats": 1}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(run, "ALIGN_TOKENS", 32_768)
        patch.setattr(run, "DISTILL_TOKENS", 32_768)
        patch.setattr(run, "QUESTIONS", 12)
        patch.setattr(run, "SPEED", speed)
        assert main(["demo", "-o", str(output), "--json"]) == 0
    (output / "printed.json").write_text(printed.getvalue())
    return output


def test_the_demo_converts_opens_and_scores(demo: Path) -> None:
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
    # Eight steps show that it was trained; how well, the whole demo shows.
    assert distilled["layout"] == hybrid["layout"]
    assert distilled["perplexity"] not in (hybrid["perplexity"], original["perplexity"])
    assert pruned["parameters"] <= 0.8 * distilled["parameters"]
    assert small["parameters"] == pruned["parameters"]
    assert small["weight_bytes"] < pruned["weight_bytes"] < distilled["weight_bytes"]
    assert json.loads((demo / "results.json").read_text()) == result
    assert (demo / "attention-2-distilled" / "config.json").exists()
    timed = [row["model"] for row in result["rows"] if row["speed"] is not None]
    assert timed == [none["model"], distilled["model"], pruned["model"], small["model"]]


def test_the_demo_ends_with_the_report(demo: Path) -> None:
    titles = re.findall("<h2>(.*?)</h2>", (demo / "report.html").read_text("utf-8"))
    assert titles[0] == "Accuracy against speed"
    for beginning in (
        "Recovery",
        "Memory",
        "Cost of fewer attention blocks",
        "Importance of each block",
        "Distilling",
        "What attention-2-pruned lost",
        "How attention-2-pruned was made",
    ):
        assert any(title.startswith(beginning) for title in titles), beginning
    pictures = list(demo.glob("report-*.png"))
    assert len(pictures) == len([title for title in titles if not title.startswith("How ")])


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--force"):
        run.run_demo(tmp_path)
