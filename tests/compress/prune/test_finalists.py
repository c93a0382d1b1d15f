"""Candidates are distilled before one is chosen, also if the run is interrupted."""

import json

import pytest

import hybridize
from hybridize.compress.prune import finalists, pruning_run
from hybridize.errors import InputError
from tiny import write_stock, write_tokenizer


@pytest.fixture
def options(tmp_path):
    write_stock(tmp_path / "in", "llama")
    write_tokenizer(tmp_path / "in")
    text = "A few words to learn from, again and again, with Other Letters in it 0123. " * 200
    (tmp_path / "text.txt").write_text(text)
    return {
        "params": "80%", "calibration": tmp_path / "text.txt", "calibration_tokens": 1024,
        "candidates": 3, "distill_top": 2, "tokens": 1024,
    }  # fmt: skip


def test_the_best_candidate_after_distillation_is_kept(tmp_path, options):
    result = hybridize.prune(tmp_path / "in", tmp_path / "out", **options)
    first, second, third = result.candidates
    assert first.chosen
    assert first.kl_distilled <= second.kl_distilled
    assert third.kl_distilled is None
    assert result.distilled_tokens == 1024
    records = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"]
    assert [record["command"] for record in records] == ["prune", "distill"]
    validation = records[-1]["metrics"]["stages"][-1]["validation_after"]
    assert validation == first.kl_distilled
    model = hybridize.load_model(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == result.parameters_after
    assert hybridize.verify(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "text.txt"]


def test_a_resumed_run_gives_the_same_result(tmp_path, options, monkeypatch):
    whole = hybridize.prune(tmp_path / "in", tmp_path / "whole", **options)
    run, finished = finalists.DistillPipeline.run, []

    def run_once(self):
        if finished:
            raise KeyboardInterrupt
        finished.append(True)
        return run(self)

    monkeypatch.setattr(finalists.DistillPipeline, "run", run_once)
    with pytest.raises(KeyboardInterrupt):
        hybridize.prune(tmp_path / "in", tmp_path / "out", **options)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="`resume=True` continues it"):
        hybridize.prune(tmp_path / "in", tmp_path / "out", **options)
    other = options | {"candidates": 4}
    with pytest.raises(InputError, match="different options"):
        hybridize.prune(tmp_path / "in", tmp_path / "out", resume=True, **other)

    def never(*args, **kwargs):
        raise AssertionError("importance was measured before")

    monkeypatch.setattr(pruning_run, "measure_importance", never)
    resumed = hybridize.prune(tmp_path / "in", tmp_path / "out", resume=True, **options)
    assert resumed.candidates == whole.candidates
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]
