"""The perplexity during training: its value, and stopping early on it."""

import math

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridize.__main__ import main
from hybridize.compress.distill import trainer
from hybridize.compress.distill.perplexity import text_loss
from hybridize.compress.distill.trainer import Trainer
from hybridize.errors import HybridizeError
from tiny import tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Read-only: all tests of the module share it."""
    return write_pair(tmp_path_factory.mktemp("pair"))


def test_the_loss_is_that_of_transformers(pair):
    """For rows of two documents, which do not see each other."""
    from hybridize.checkpoints.load import load_model

    ids, seq_idx = tokens(3, 24), torch.tensor([0] * 9 + [1] * 15).expand(3, -1)
    total, count = text_loss(load_model(pair[1]), ids, seq_idx)
    stock = AutoModelForCausalLM.from_pretrained(pair[1]).eval()
    with torch.no_grad():
        expected = sum(
            float(stock(part, labels=part).loss) * 3 * (part.shape[1] - 1)
            for part in (ids[:, :9], ids[:, 9:])
        )
    assert count == 3 * (8 + 14)
    assert total == pytest.approx(expected, rel=1e-5)


def test_the_perplexity_is_measured_at_its_own_steps(pair, tmp_path):
    """Whatever the size of a batch; each measurement has a validation beside it."""
    result = short_run(pair, tmp_path / "out", eval_every=3, validate_every=4, batch_size=3,
                       global_batch_size=4)  # fmt: skip
    plain = short_run(pair, tmp_path / "plain", eval_every=8)
    lines = [line for line in losses(tmp_path / "out") if line["stage"] == "kl"]
    assert [line["step"] for line in lines if "perplexity" in line] == [0, 3, 6, 8]
    assert [line["step"] for line in lines if "validation" in line] == [0, 3, 4, 6, 8]
    for ours, theirs in zip(result.stages, plain.stages, strict=True):
        assert ours.perplexity_before == pytest.approx(theirs.perplexity_before, rel=1e-5)
        assert ours.perplexity_after == pytest.approx(theirs.perplexity_after, rel=1e-4)
        assert ours.perplexity_after != ours.perplexity_before


def test_the_command_line_prints_it(pair, tmp_path, capsys):
    teacher, student, text = pair
    command = [
        "distill", student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text,
        "--stages", "kl", "--kl-tokens", 128, "--seq-len", 16, "--batch-size", 4,
        "--validation-sequences", 4, "--eval-every", 2, "--device", "cpu",
    ]  # fmt: skip
    assert main([*map(str, command)]) == 0
    shown = capsys.readouterr().out
    values = [line["perplexity"] for line in losses(tmp_path / "out") if "perplexity" in line]
    assert len(values) == 2
    assert all(f"{value:.4f}" in shown for value in values)


def test_patience_watches_the_perplexity(pair, tmp_path, monkeypatch):
    values = iter([9.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(trainer, "text_loss", lambda *_: (math.log(next(values)) * 10, 10))
    options = {"stages": ("kl",), "validation_sequences": 4, "eval_every": 2}
    result = short_run(pair, tmp_path / "out", patience=2, **options)
    (stage,) = result.stages
    assert stage.steps == 6
    assert stage.perplexity_after == pytest.approx(5.0)
    monkeypatch.setattr(trainer, "text_loss", lambda *_: (1.0, 1))
    monkeypatch.setattr(Trainer, "_should_stop_early", lambda self: self._state.step == 2)
    expected = short_run(pair, tmp_path / "two", **options)
    assert stage.validation_after == expected.stages[0].validation_after
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "two"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("result", [(1e9, 1), (math.nan, 1), (0.0, 0)])
def test_a_perplexity_that_is_not_finite_fails_the_run(pair, tmp_path, monkeypatch, result):
    monkeypatch.setattr(trainer, "text_loss", lambda *_: result)
    with pytest.raises(HybridizeError, match="the perplexity at step 0 is not finite"):
        short_run(pair, tmp_path / "out", stages=("kl",), eval_every=2)
