"""Optimizers, learning rates and their schedules."""

import json

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file
from transformers import get_scheduler

from hybridize.__main__ import main
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.distributed import Ranks
from hybridize.compress.distill.pipeline import check_muon
from hybridize.compress.distill.schedules import SCHEDULES
from hybridize.compress.distill.trainer import Trainer
from hybridize.errors import HybridizeError, InputError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Read-only: all tests of the module share it."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_transformers(name):
    """Except for the warmup: theirs wastes the first step on the lowest rate."""
    config = DistillConfig(
        teacher="t",
        lr_schedule=name,
        warmup_ratio=0.25,
        **({"min_lr_ratio": 0.1} if name in ("cosine", "linear", "warmup_stable_decay") else {}),
        **({"decay_ratio": 0.4} if name == "warmup_stable_decay" else {}),
    )
    theirs_name, specific = name, {}
    if name == "cosine":
        theirs_name, specific = "cosine_with_min_lr", {"min_lr_rate": 0.1}
    if name == "warmup_stable_decay":
        specific = {"min_lr_ratio": 0.1, "num_decay_steps": 16}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs_name, optimizer, 10, 40, specific)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    if name != "constant":
        expected[:10] = [(step + 1) / 10 for step in range(10)]
    if name == "linear":  # transformers' linear schedule ends at 0
        expected[10:] = [0.1 + 0.9 * rate for rate in expected[10:]]
    ours = [config.lr_factor(step, 40) for step in range(40)]
    assert ours == pytest.approx(expected, abs=1e-9)


def test_the_default_schedule_is_a_cosine_to_two_percent():
    config = DistillConfig(teacher="t")
    assert config.lr_factor(9, 100) == 1.0
    assert config.lr_factor(55, 100) == pytest.approx(0.51)
    assert config.lr_factor(100, 100) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"decay_ratio": 0.1}, "`decay_ratio` needs `lr_schedule=warmup_stable_decay`"),
        ({"min_lr_ratio": 0.1, "lr_schedule": "constant"}, "`min_lr_ratio` needs a schedule that"),
        ({"lr_schedule": "wsd"}, "`lr_schedule=wsd`: choose one of cosine, linear"),
        (
            {"lr_schedule": "warmup_stable_decay", "warmup_ratio": 0.9},
            "`warmup_ratio=0.9` and `decay_ratio=0.2` are more than all steps",
        ),
        ({"other_learning_rates": {"kl": 1e-5}}, r"`other_learning_rates\[kl\]` needs `train=all`"),
        (
            {"other_learning_rates": {"align": 1e-5}, "train": "all"},
            r"`other_learning_rates\[align\]=1e-05`: choose from hidden, kl",
        ),
        (
            {"other_learning_rates": {"hidden": 1e-5}, "train": "all"},
            r"`other_learning_rates\[hidden\]`: `stages` does not name hidden",
        ),
        ({"optimizer": "lion"}, "`optimizer=lion`: choose one of adamw, muon"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, complaint):
    with pytest.raises(InputError, match=complaint):
        DistillConfig(teacher="t", **options)


def test_other_parameters_have_their_own_learning_rate(pair, tmp_path, capsys):
    """A rate of nearly 0 leaves everything outside of new mixers as it was."""
    teacher, student, text = pair
    command = [
        "distill", student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text,
        "--stages", "kl", "--kl-tokens", 512, "--seq-len", 16, "--batch-size", 4, "--kl-lr", "3e-3",
        "--validation-sequences", 4, "--train", "all", "--kl-other-lr", "1e-12", "--device", "cpu",
    ]  # fmt: skip
    assert main([*map(str, command), "--json"]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (student, tmp_path / "out"))
    for name, value in before.items():
        change = float((after[name] - value).abs().max())
        assert (change > 1e-4) == (".mamba." in name), name
    lines = [line for line in losses(tmp_path / "out") if "loss" in line]
    assert all(line["other_learning_rate"] < 1e-11 < line["learning_rate"] for line in lines)
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"][-1]
    assert record["options"]["other_learning_rates"] == {"kl": 1e-12}
    capsys.readouterr()
    assert main([*map(str, command), "--force", "--train", "mixers"]) == 2
    assert "--kl-other-lr needs --train all" in capsys.readouterr().err


def test_muon_steps_are_torchs(pair, tmp_path, monkeypatch):
    """One step of each stage: matrices of mixers as torch.optim.Muon, the rest as AdamW."""
    gradients = {}
    step = torch.optim.Muon.step

    def record(optimizer, closure=None):
        for p in optimizer.param_groups[0]["params"]:
            gradients[p] = (p.detach().clone(), p.grad.clone())
        step(optimizer, closure)
        reference = [torch.nn.Parameter(value) for value, _ in gradients.values()]
        for mine, (_, grad) in zip(reference, gradients.values(), strict=True):
            mine.grad = grad
        rate = optimizer.param_groups[0]["lr"]
        theirs = torch.optim.Muon(
            reference, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        step(theirs)
        for p, mine in zip(gradients, reference, strict=True):
            assert p.ndim == 2
            assert torch.equal(p, mine)

    monkeypatch.setattr(torch.optim.Muon, "step", record)
    short_run(pair, tmp_path / "out", stages=("align",), stage_tokens={"align": 64},
              optimizer="muon")  # fmt: skip
    assert gradients


def test_muon_needs_a_single_process_and_a_torch_that_has_it(monkeypatch):
    check_muon(Ranks())
    with pytest.raises(InputError, match="`optimizer=muon` needs a single process"):
        check_muon(Ranks(0, 2))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"`optimizer=muon` needs torch 2\.9"):
        check_muon(Ranks())


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "muon", "train": "all", "patience": 3, "weight_decay": 0.1},
        {"lr_schedule": "warmup_stable_decay", "global_batch_size": 6},
    ],
    ids=["muon", "wsd"],
)
def test_a_resumed_run_writes_the_same_bits(pair, tmp_path, monkeypatch, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options |= {"save_every": 2}
    result = short_run(pair, whole, **options)
    for stage in result.stages:
        assert stage.validation_after < stage.validation_before
    train_step, done = Trainer._train_step, []

    def stopping(trainer):
        if len(done) == 13:
            raise HybridizeError("stopped")
        done.append(1)
        train_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        # The second run has fewer steps.
        done += [1] * (16 - sum(stage.steps for stage in result.stages))
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, parts, **options)
    short_run(pair, parts, resume=True, **options)
    assert losses(parts) == losses(whole)
    ours, theirs = (load_file(path / "model.safetensors") for path in (parts, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
