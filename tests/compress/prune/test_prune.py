"""`prune` on checkpoints of every architecture, from the command line and from Python."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import hybridize
from hybridize.__main__ import main
from hybridize.compress.prune.scores import Scores
from hybridize.errors import InputError
from hybridize.modeling.model import HybridModel
from tiny import tokens, write_stock, write_tokenizer

TEXT = "A few words to measure on, again and again, with Other Letters in it 0123. " * 40


@pytest.fixture
def source(tmp_path):
    write_stock(tmp_path / "in", "llama")
    write_tokenizer(tmp_path / "in")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "in"


OPTIONS = {"calibration_tokens": 1024, "candidates": 4}


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "granitemoehybrid", "bamba", "nemotron_h", "mamba2"]
)
@torch.no_grad()
def test_every_architecture_becomes_smaller_and_can_be_loaded(tmp_path, architecture):
    write_stock(tmp_path / "in", architecture)
    write_tokenizer(tmp_path / "in")
    (tmp_path / "text.txt").write_text(TEXT)
    options = {"calibration": tmp_path / "text.txt", **OPTIONS}
    result = hybridize.prune(tmp_path / "in", tmp_path / "out", params="75%", **options)
    assert result.parameters_after <= 0.75 * result.parameters_before
    chosen = result.candidates[0]
    assert chosen.chosen
    assert chosen.kl == min(candidate.kl for candidate in result.candidates)
    model = hybridize.load_model(tmp_path / "out", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == result.parameters_after
    ids = tokens()
    assert hybridize.verify(tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(stock(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_model_runs_once_on_the_held_out_text_for_all_candidates(source, tmp_path, monkeypatch):
    runs, forward = [], HybridModel.forward

    def counted(self, ids, **options):
        runs.append(len(self.blocks))
        return forward(self, ids, **options)

    monkeypatch.setattr(HybridModel, "forward", counted)
    result = hybridize.prune(
        source, tmp_path / "out", params="75%", calibration=tmp_path / "text.txt", **OPTIONS
    )
    assert len(result.candidates) == 4
    assert len(runs) == 1 + 4


def test_dry_run_and_run_from_the_command_line(source, tmp_path, capsys):
    command = ["prune", str(source), "-o", str(tmp_path / "out"), "--params", "80%"]
    command += ["--calibration", str(tmp_path / "text.txt"), "--calibration-tokens", "2k"]
    command += ["--scores", str(tmp_path / "s.safetensors"), "--candidates", "3", "--json"]
    assert main([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert main(command) == 0  # reads the scores that the dry run wrote
    done = json.loads(capsys.readouterr().out)
    assert {**planned, "dry_run": False} == done
    history = json.loads((tmp_path / "out" / "hybridize.json").read_text())
    assert "prune" in json.dumps(history)
    assert (tmp_path / "out" / "importance.png").read_bytes().startswith(b"\x89PNG")
    assert main(command) == 2  # the output exists
    assert "--force" in capsys.readouterr().err


def test_offload_measures_no_candidate(source, tmp_path):
    result = hybridize.prune(
        source, tmp_path / "out", params="80%", calibration=tmp_path / "text.txt",
        scores=tmp_path / "scores", offload=True, **OPTIONS,
    )  # fmt: skip
    assert {candidate.kl for candidate in result.candidates} == {None}
    assert result.parameters_after <= 0.8 * result.parameters_before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "give a budget: `params=70%`, `memory=24GiB@65536` or `latency"),
        ({"params": "many"}, "`params=many`: give a percentage"),
        ({"memory": "12@3"}, "`memory=12@3`: give SIZE@CONTEXT"),
        ({"params": "50%", "axes": ("length",)}, "`axes=.*length.*`: choose one of depth, ffn"),
        ({"params": "1%"}, "the smallest has"),
        ({"params": "50%", "calibration": "nowhere.txt"}, "`calibration=nowhere.txt`"),
        ({"params": "50%", "calibration_tokens": 300}, "at least two sequences of 256"),
        ({"params": "50%", "multiple_of": 0}, "`multiple_of=0`"),
        ({"params": "50%", "format": "gguf"}, "`format=gguf`: choose one of"),
        ({"latency": "2"}, "`latency=2`: the share must be above 0 and at most 1"),
        ({"latency": "fast"}, "`latency=fast`: give SHARE"),
        ({"params": "50%", "weight_bits": 4}, "`weight_bits` and `kv_bits` need `memory`"),
        ({"params": "50%", "distill_top": 5}, "`distill_top=5`: there are only `candidates=4`"),
        ({"params": "50%", "distill_top": 1, "offload": True}, "`distill_top` trains whole models"),
        ({"params": "50%", "tokens": 10**6}, "`tokens` needs `distill_top`"),
        (
            {"params": "50%", "distill_top": 1, "tokens": 10},
            "`tokens=10`: give at least",
        ),
        ({"params": "50%", "widths": "any"}, "`widths=any`: choose one of uniform, per-block"),
        (
            {"params": "50%", "widths": "per-block", "format": "bamba"},
            "`format=bamba` cannot store",
        ),
        ({"params": "50%", "resume": True}, "no interrupted run that `resume=True`"),
    ],
)
def test_bad_options_leave_nothing_behind(source, tmp_path, options, complaint):
    given_ = {"calibration": tmp_path / "text.txt", **OPTIONS, **options}
    with pytest.raises(InputError, match=complaint):
        hybridize.prune(source, tmp_path / "out", **given_)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.prune").exists()


def test_scores_of_another_checkpoint_are_refused(source, tmp_path):
    options = {"params": "80%", "calibration": tmp_path / "text.txt", **OPTIONS}
    hybridize.prune(source, tmp_path / "out", scores=tmp_path / "scores", **options)
    write_stock(tmp_path / "other", "llama", seed=1)
    write_tokenizer(tmp_path / "other")
    with pytest.raises(InputError, match="measured on another checkpoint"):
        hybridize.prune(tmp_path / "other", tmp_path / "no", scores=tmp_path / "scores", **options)


@given(data=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_files_are_rejected_as_scores(tmp_path, data):
    (tmp_path / "scores").write_bytes(data)
    with pytest.raises(InputError, match="not a file that prune wrote"):
        Scores.load(tmp_path / "scores", "")
