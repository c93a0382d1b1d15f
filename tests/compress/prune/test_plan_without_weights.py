"""Plans from configurations alone: a published model by its name, and any config.json."""

import json

import pytest

from hybridize.__main__ import main
from hybridize.checkpoints.published_models import published
from hybridize.compress.prune.budget import memory_budget
from tiny import write_stock

CARD = ["--memory", "31.7GiB@512k", "--weight-bits", "4", "--kv-bits", "8"]


def test_plan_of_nemotron_h_56b_for_a_32_gib_card(tmp_path, capsys):
    command = ["prune", "nemotron-h-56b", "-o", str(tmp_path / "out"), *CARD]
    assert main([*command, "--axes", "depth,ffn", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["parameters_before"] == pytest.approx(56e9, rel=0.02)
    assert planned["parameters_after"] < planned["parameters_before"]
    assert planned["format"] == "nemotron_h"
    assert len(planned["layout_before"]) == 118
    assert "no weights" in planned["notes"][0]
    assert not (tmp_path / "out").exists()
    assert main(command) == 2
    assert "has no weights; only --dry-run works without them" in capsys.readouterr().err
    assert main([*command, "--dry-run", "--widths", "per-block"]) == 2
    assert "--widths per-block needs weights" in capsys.readouterr().err


def test_nemotron_h_47b_meets_the_budget_that_56b_does_not():
    """Half a million tokens on a 32 GiB card."""
    budget = memory_budget("31.7GiB@512k", 2, weight_bits=4, kv_bits=8)
    assert budget.cost(published("nemotron-h-47b")[1]) <= budget.limit
    assert budget.cost(published("nemotron-h-56b")[1]) > budget.limit


def test_plan_from_a_directory_without_weights_and_from_a_config_json(tmp_path, capsys):
    write_stock(tmp_path / "in", "bamba")
    for file in (tmp_path / "in").glob("*.safetensors"):
        file.unlink()
    for model in (tmp_path / "in", tmp_path / "in" / "config.json"):
        command = ["prune", str(model), "-o", str(tmp_path / "out"), "--params", "80%"]
        assert main([*command, "--dry-run", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert planned["parameters_after"] <= 0.8 * planned["parameters_before"]
        assert planned["block_importance"] is None
