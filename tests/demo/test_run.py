"""The demo as a user runs it, on fewer tokens."""

import json
from pathlib import Path

import pytest

from hybridize.__main__ import main
from hybridize.demo import run
from hybridize.errors import InputError


def test_the_demo_converts_opens_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ALIGN_TOKENS", 32_768)
    monkeypatch.setattr(run, "DISTIL_TOKENS", 32_768)
    output = tmp_path / "out"
    assert main(["demo", "-o", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
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
    assert json.loads((output / "results.json").read_text()) == result
    assert (output / "attention-2-distilled" / "config.json").exists()


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--force"):
        run.run_demo(tmp_path)
