"""benchmarks/real_models_costs.py on the bundled checkpoint."""

import json
import sys
from pathlib import Path

import torch

from hybridize.demo import CHECKPOINT, PROSE

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from real_models_costs import CostSettings, commands, measure, measure_costs, table


def test_the_memory_of_this_process_does_not_count(tmp_path):
    ballast = torch.ones(100 << 20)  # 400 MiB; the command itself imports no torch
    found = measure(["inspect", str(CHECKPOINT)], tmp_path / "log.txt")
    assert found["exit_code"] == 0
    assert 5 << 20 < found["peak_bytes"] < ballast.nbytes // 2
    assert found["cpu_s"] > 0
    assert found["cpu_s"] <= found["wall_s"] * 8
    assert "layout" in (tmp_path / "log.txt").read_text("utf-8")


def test_results_are_kept_and_failures_are_named(tmp_path):
    text, work = tmp_path / "text.txt", tmp_path / "work"
    text.write_text(PROSE.read_text("utf-8")[:1000], "utf-8")
    first = measure_costs(CHECKPOINT, work, text, only=["inspect"], output=tmp_path)
    results = measure_costs(CHECKPOINT, work, text, only=["report"], output=tmp_path)
    found = {one["name"]: one for one in results[CHECKPOINT.name]["commands"]}
    assert found["inspect"] == first[CHECKPOINT.name]["commands"][0]
    assert found["report"]["exit_code"] == 2
    assert "bench.json" in found["report"]["error"]
    assert str(tmp_path) not in json.dumps([one["arguments"] for one in found.values()])
    assert json.loads((tmp_path / "real_models-costs.json").read_text("utf-8")) == results
    assert "| `inspect` |" in table(results)


def test_every_command_of_the_product_is_measured(tmp_path):
    from hybridize.cli import COMMANDS

    found = commands(CHECKPOINT, tmp_path, PROSE, tmp_path, CostSettings())
    assert {arguments[0] for arguments in found.values()} == set(COMMANDS) - {"demo"}
