"""`hybridize distill` end to end: its output, bad input, and interrupted runs."""

import json
import shutil

import pytest
import torch
from distilling import assert_same_weights, losses, short_run, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hybridize
from hybridize.__main__ import main
from hybridize.checkpoints.load import load_model
from hybridize.compress.distill.trainer import Trainer
from hybridize.errors import HybridizeError, InputError
from tiny import tokens, write_stock, write_tokenizer


def test_distillation_reduces_the_divergence_from_the_teacher(pair, tmp_path):
    teacher, student, _ = pair
    rates = {"align": 3e-3, "kl": 3e-3}
    sizes = {"align": 64 * 40, "kl": 64 * 90}
    result = short_run(pair, tmp_path / "out", learning_rates=rates, stage_tokens=sizes)
    ids = tokens(8, 16)
    with torch.no_grad():
        target, before, after = (
            load_model(path)(ids).logits.log_softmax(-1)
            for path in (teacher, student, tmp_path / "out")
        )
    kl_before, kl_after = (
        (target.exp() * (target - log_probs)).sum(-1).mean() for log_probs in (before, after)
    )
    assert kl_after < 0.7 * kl_before
    align, kl = result.stages
    assert align.validation_after < 0.9 * align.validation_before
    assert kl.validation_after < kl.validation_before


@torch.no_grad()
def test_transformers_opens_the_result_and_only_new_blocks_changed(pair, done):
    output, result = done
    _, student, _ = pair
    assert not output.with_name("out.distill").exists()
    ids = tokens(2, 30)
    stock = AutoModelForCausalLM.from_pretrained(output)
    assert type(stock).__name__ == "GraniteMoeHybridForCausalLM"
    torch.testing.assert_close(stock(ids).logits, load_model(output)(ids).logits,
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    before, after = weights(student), weights(output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".mamba." in name for name in changed)
    assert (output / "distill.png").read_bytes().startswith(b"\x89PNG")
    assert hybridize.verify(output).problems == ()
    steps = json.loads((output / "hybridize.json").read_text())["steps"]
    assert [step["command"] for step in steps] == ["convert", "distill"]
    assert steps[1]["metrics"]["stages"] == [
        json.loads(json.dumps(stage)) for stage in result.to_dict()["stages"]
    ]


def test_metrics_have_a_line_for_every_step_and_validation(done):
    lines = losses(done[0])
    for stage in ("align", "kl"):
        stage_lines = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in stage_lines if "loss" in line] == list(range(1, 9))
        assert [line["step"] for line in stage_lines if "validation" in line] == [0, 4, 8]


def test_a_repeated_run_writes_the_same_bits(pair, done, tmp_path):
    short_run(pair, tmp_path / "out")
    assert losses(tmp_path / "out") == losses(done[0])
    assert_same_weights(tmp_path / "out", done[0])


def test_steps_with_gradients_that_are_not_finite_are_skipped(pair, tmp_path, monkeypatch):
    from hybridize.compress.distill.stages.align import Align

    training_step, calls = Align.training_step, []

    def sometimes_nan(self, ids, seq_idx, indices):
        loss = training_step(self, ids, seq_idx, indices)
        calls.append(1)
        if len(calls) in (2, 5):
            next(iter(self.parameters.values())).grad.fill_(torch.nan)
        return loss

    monkeypatch.setattr(Align, "training_step", sometimes_nan)
    result = short_run(pair, tmp_path / "out", stages=("align",))
    assert result.stages[0].skipped == 2
    assert [line["step"] for line in losses(tmp_path / "out") if "skipped" in line] == [2, 5]
    assert all(t.isfinite().all() for t in weights(tmp_path / "out").values())


def test_a_loss_that_stays_infinite_fails_the_run(pair, tmp_path, monkeypatch):
    from hybridize.compress.distill.stages.align import Align

    monkeypatch.setattr(Align, "training_step", lambda *_: torch.inf)
    with pytest.raises(HybridizeError, match="not finite"):
        short_run(pair, tmp_path / "out", stages=("align",), stage_tokens={"align": 64 * 50})


def test_patience_stops_a_stage_and_keeps_its_best_parameters(pair, tmp_path, monkeypatch):
    losses_in_order = iter([3.0, 2.0, 1.0, 1.5, 1.6, 0.1])
    from hybridize.compress.distill.stages.align import Align

    monkeypatch.setattr(Align, "validation_step", lambda *_: next(losses_in_order))
    long = {"stages": ("align",), "stage_tokens": {"align": 64 * 40}}
    result = short_run(pair, tmp_path / "out", patience=2, validation_sequences=4, **long)
    assert result.stages[0].steps == 16
    assert result.stages[0].validation_after == 1.0
    monkeypatch.undo()
    # The best validation was measured after 8 steps.
    monkeypatch.setattr(Trainer, "_should_stop_early", lambda trainer: trainer._state.step == 8)
    short_run(pair, tmp_path / "eight", **long)
    assert_same_weights(tmp_path / "out", tmp_path / "eight")


@pytest.mark.parametrize(
    "options",
    [
        {"cache_teacher": 64, "stages": ("kl",)},
        {"gradient_checkpointing": True},
        {"tbptt_length": 6},
        {"tbptt_length": 6, "gradient_checkpointing": True, "train": "all"},
        {"train": "all", "stages": ("hidden", "kl"), "label_weight": 0.5, "temperature": 2.0},
        {"dtype": "bfloat16"},
        {"data": ("teacher",)},
    ],
    ids=lambda options: "+".join(options),
)
def test_options_work_together(pair, tmp_path, options):
    result = short_run(pair, tmp_path / "out", **options)
    assert [stage.skipped for stage in result.stages] == [0] * len(result.stages)
    assert result.stages[0].validation_after < result.stages[0].validation_before
    before, after = load_model(pair[1]), load_model(tmp_path / "out")
    assert any(
        not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True)
    )
    assert load_model(tmp_path / "out")(tokens(1, 8)).logits.isfinite().all()


def test_gradient_checkpointing_changes_no_loss(pair, done, tmp_path):
    short_run(pair, tmp_path / "out", gradient_checkpointing=True)
    with_checkpointing, without = (
        [line["loss"] for line in losses(directory) if "loss" in line]
        for directory in (tmp_path / "out", done[0])
    )
    assert with_checkpointing == pytest.approx(without, rel=1e-4)


def test_the_command_line_prints_the_result(pair, tmp_path, capsys):
    teacher, student, text = pair
    arguments = [
        "distill", student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text,
        "--stages", "kl", "--tokens", "0.5k", "--seq-len", 16, "--batch-size", 4,
        "--validation-sequences", 4, "--kl-lr", 0.002,
    ]  # fmt: skip
    assert main([*map(str, arguments), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == {"kl": 7}
    assert not (tmp_path / "out").exists()
    assert main([*map(str, arguments), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stages"][0]["steps"] == 7
    assert result["trained"] == plan["trained"]
    assert main([*map(str, arguments), "--force"]) == 0
    assert "validation" in capsys.readouterr().out


BAD = [
    ({"teacher": "other"}, "hidden_size is 32 and the teacher's is 16"),
    ({"teacher": "shallow"}, "has 6 blocks and the teacher 4"),
    ({"teacher": "letters"}, "its tokenizer differs from the teacher's"),
    ({"stages": ("align", "sing")}, "choose one of align, hidden, kl"),
    ({"stages": ()}, "name one or more stages"),
    ({"stages": ("kl", "kl")}, "each once"),
    ({"data": ("missing.txt",)}, "`data=missing.txt`: no such file"),
    ({"seq_len": 4096}, "less text than one sequence of 4096 tokens"),
    ({"validation_sequences": 10_000}, "are held out; give more text or lower `validation_seq"),
    ({"cache_teacher": 4, "temperature": 2.0}, "predictions at `temperature=1` only"),
    ({"cache_teacher": 4, "stages": ("align",)}, "`cache_teacher` is for the stages kl"),
    ({"temperature": 0.0}, "`temperature=0.0`: give a number above 0"),
    ({"label_weight": 1.5}, "`label_weight=1.5`: give a number from 0 to 1"),
    ({"dtype": "float16"}, "`dtype=float16`: choose one of auto, float32, bfloat16"),
    ({"stage_tokens": {"hidden": 5}}, r"`stage_tokens\[hidden\]`: `stages` does not name hidden"),
    ({"learning_rates": {"hidden": 1.0}}, r"`learning_rates\[hidden\]`: `stages` does not name"),
    ({"stage_tokens": {"kl": 0}}, r"`stage_tokens\[kl\]=0`: give a count"),
    ({"stage_tokens": {"sing": 1}}, r"`stage_tokens\[sing\]=1`: choose from align, hidden, kl"),
    ({"resume": True}, "no interrupted run that `resume=True` could continue"),
]


@pytest.mark.parametrize(("options", "complaint"), BAD, ids=[str(list(o)) for o, _ in BAD])
def test_bad_input(pair, tmp_path, options, complaint):
    if "teacher" in options:
        directory = tmp_path / options["teacher"]
        changes = {
            "other": {"hidden_size": 16, "num_hidden_layers": 3},
            "shallow": {"num_hidden_layers": 2},
            "letters": {"num_hidden_layers": 3},
        }[directory.name]
        write_stock(directory, "llama", **changes)
        write_tokenizer(directory)
        if directory.name == "letters":
            path = directory / "tokenizer.json"
            path.write_text(path.read_text().replace('"a"', '"é"'))
        options = {"teacher": directory}
    with pytest.raises(InputError, match=complaint):
        short_run(pair, tmp_path / "out", **options)
    assert not list(tmp_path.glob("out*"))  # and no working directory


def test_a_student_without_new_blocks_is_bad_input(pair, tmp_path):
    teacher, _, text = pair
    hybridize.convert(teacher, tmp_path / "same", attention="100%")
    with pytest.raises(InputError, match="none of its blocks replaced an attention block"):
        short_run((teacher, tmp_path / "same", text), tmp_path / "out")


def test_a_student_with_overflowing_logits_is_not_trained(pair, tmp_path):
    teacher, student, text = pair
    broken = tmp_path / "broken"
    shutil.copytree(student, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"].fill_(3e38)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HybridizeError, match=r"kl: the validation loss is (nan|inf) at step 0"):
        short_run((teacher, broken, text), tmp_path / "out", stages=("kl",))
    assert not (tmp_path / "out").exists()
