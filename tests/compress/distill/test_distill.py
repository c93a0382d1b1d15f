"""`hybridize distill` as a whole: what it writes, what it refuses, and how it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hybridize
from hybridize.__main__ import main
from hybridize.checkpoints.load import load_model
from hybridize.compress.distill.loop import Loop
from hybridize.compress.distill.state import keep_metrics
from hybridize.errors import HybridizeError, InputError
from tiny import tokens, write_stock, write_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Treat it as read-only: the module shares it."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    """A run from beginning to end, and its result."""
    output = tmp_path_factory.mktemp("done") / "out"
    return output, short_run(pair, output)


def weights(directory):
    return load_file(directory / "model.safetensors")


def test_the_student_comes_closer_to_its_teacher(pair, tmp_path):
    teacher, student, _ = pair
    rates = {"align": 3e-3, "kl": 3e-3}
    sizes = {"align": 64 * 40, "kl": 64 * 60}
    result = short_run(pair, tmp_path / "out", learning_rates=rates, stage_tokens=sizes)
    ids = tokens(8, 16)
    with torch.no_grad():
        want, before, after = (
            load_model(path)(ids).logits.log_softmax(-1)
            for path in (teacher, student, tmp_path / "out")
        )
    far, near = ((want.exp() * (want - got)).sum(-1).mean() for got in (before, after))
    assert near < 0.7 * far
    align, kl = result.stages  # what align has learned, kl finds done
    assert align.validation_after < 0.9 * align.validation_before
    assert kl.validation_after < kl.validation_before


@torch.no_grad()
def test_plain_transformers_opens_the_result(pair, done):
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


def test_metrics_tell_every_step(done):
    lines = losses(done[0])
    for stage in ("align", "kl"):
        mine = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in mine if "loss" in line] == list(range(1, 9))
        assert [line["step"] for line in mine if "validation" in line] == [0, 4, 8]


def test_the_same_run_gives_the_same_bits(pair, done, tmp_path):
    short_run(pair, tmp_path / "out")
    assert losses(tmp_path / "out") == losses(done[0])
    mine, theirs = weights(tmp_path / "out"), weights(done[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_resumed_run_ends_with_the_same_bits(pair, done, tmp_path, monkeypatch, stop):
    """Stopped after some steps, between two saves, and resumed."""
    plain, steps = Loop._step, []

    def stopping(loop):
        if len(steps) == stop:
            raise HybridizeError("stopped")
        steps.append(1)
        plain(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", save_every=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--resume goes on with it"):
        short_run(pair, tmp_path / "out", save_every=2)
    short_run(pair, tmp_path / "out", save_every=2, resume=True)
    assert losses(tmp_path / "out") == losses(done[0])
    mine, theirs = weights(tmp_path / "out"), weights(done[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "out.distill").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_resumes(pair, done, tmp_path):
    teacher, student, text = pair
    options = [
        student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text, "--seq-len", 16,
        "--batch-size", 4, "--validation", 4, "--validate-every", 4, "--align-tokens", 512,
        "--kl-tokens", 512, "--save-every", 1, "--device", "cpu", "--quiet",
    ]  # fmt: skip
    command = [sys.executable, "-m", "hybridize", "distill", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    state = tmp_path / "out.distill" / "state.safetensors"
    until = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() or (tmp_path / "out").exists()
    if not (tmp_path / "out").exists():
        subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    mine, theirs = weights(tmp_path / "out"), weights(done[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_steps_that_are_not_finite_are_left_out(pair, tmp_path, monkeypatch):
    from hybridize.compress.distill.stages.align import Align

    plain, calls = Align.learn, []

    def sometimes(self, ids, seq_idx, rows):
        loss = plain(self, ids, seq_idx, rows)
        calls.append(1)
        if len(calls) in (2, 5):
            next(iter(self.parameters.values())).grad.fill_(torch.nan)
        return loss

    monkeypatch.setattr(Align, "learn", sometimes)
    result = short_run(pair, tmp_path / "out", stages=("align",))
    assert result.stages[0].skipped == 2
    assert [line["step"] for line in losses(tmp_path / "out") if "skipped" in line] == [2, 5]
    assert all(t.isfinite().all() for t in weights(tmp_path / "out").values())


def test_a_loss_that_stays_infinite_ends_the_run(pair, tmp_path, monkeypatch):
    from hybridize.compress.distill.stages.align import Align

    monkeypatch.setattr(Align, "learn", lambda *_: torch.inf)
    with pytest.raises(HybridizeError, match="not finite"):
        short_run(pair, tmp_path / "out", stages=("align",), stage_tokens={"align": 64 * 50})


def test_patience_ends_a_stage_with_its_best_values(pair, tmp_path, monkeypatch):
    wanted = iter([3.0, 2.0, 1.0, 1.5, 1.6, 0.1])
    from hybridize.compress.distill.stages.align import Align

    monkeypatch.setattr(Align, "measure", lambda *_: next(wanted))
    long = {"stages": ("align",), "stage_tokens": {"align": 64 * 40}}
    result = short_run(pair, tmp_path / "out", patience=2, validation=4, **long)
    assert result.stages[0].steps == 16
    assert result.stages[0].validation_after == 1.0
    monkeypatch.undo()
    # The values are those after 8 steps, when the best validation was measured.
    monkeypatch.setattr(Loop, "_is_stuck", lambda loop: loop._progress.step == 8)
    short_run(pair, tmp_path / "eight", **long)
    mine, theirs = weights(tmp_path / "out"), weights(tmp_path / "eight")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_teacher": 64, "stages": ("kl",)},
        {"gradient_checkpointing": True},
        {"segment": 6},
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
    mine, theirs = (
        [line["loss"] for line in losses(directory) if "loss" in line]
        for directory in (tmp_path / "out", done[0])
    )
    assert mine == pytest.approx(theirs, rel=1e-4)


def test_the_command_line_gives_the_figures(pair, tmp_path, capsys):
    teacher, student, text = pair
    arguments = [
        "distill", student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text,
        "--stages", "kl", "--tokens", "0.5k", "--seq-len", 16, "--batch-size", 4,
        "--validation", 4, "--kl-lr", 0.002,
    ]  # fmt: skip
    assert main([*map(str, arguments), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["steps"] == {"kl": 7}
    assert not (tmp_path / "out").exists()
    assert main([*map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][0]["steps"] == 7
    assert found["trained"] == planned["trained"]
    assert main([*map(str, arguments), "--force"]) == 0
    assert "validation" in capsys.readouterr().out


BAD = [
    ({"teacher": "other"}, "hidden_size is 32 and the teacher's 16"),
    ({"teacher": "shallow"}, "has 6 blocks and the teacher 4"),
    ({"teacher": "letters"}, "its tokenizer is not the teacher's"),
    ({"stages": ("align", "sing")}, "--stages sing: choose from align, hidden, kl"),
    ({"stages": ()}, "name one stage or more"),
    ({"stages": ("kl", "kl")}, "each once"),
    ({"data": ("missing.txt",)}, "missing.txt: no such file"),
    ({"seq_len": 4096}, "less text than one row of 4096 tokens"),
    ({"validation": 10_000}, "are held out; give more text or lower --validation"),
    ({"cache_teacher": 4, "temperature": 2.0}, "--cache-teacher knows the teacher at"),
    ({"cache_teacher": 4, "stages": ("align",)}, "--cache-teacher serves the kl stage"),
    ({"segment": 8, "gradient_checkpointing": True}, "exclude each other"),
    ({"temperature": 0.0}, "--temperature 0.0: it must be positive"),
    ({"label_weight": 1.5}, "--label-weight 1.5: choose from 0 to 1"),
    ({"dtype": "float16"}, "--dtype float16: choose float32 or bfloat16"),
    ({"stage_tokens": {"hidden": 5}}, "tokens for hidden: --stages leaves that stage out"),
    ({"resume": True}, "nothing to --resume there"),
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
    assert not list(tmp_path.glob("out*"))  # no working directory either: it would be in the way


def test_a_model_that_swapped_nothing_has_no_mixers_to_train(pair, tmp_path):
    teacher, _, text = pair
    hybridize.convert(teacher, tmp_path / "same", attention="100%")
    with pytest.raises(InputError, match="no block of it replaced attention"):
        short_run((teacher, tmp_path / "same", text), tmp_path / "out")


def test_another_runs_directory_is_not_resumed(pair, tmp_path, monkeypatch):
    def stop(loop):
        raise HybridizeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stop)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out")
    for options, what in (({"seed": 1}, "settings"), ({"data": ("teacher",)}, "data")):
        with pytest.raises(InputError, match=f"another run \\(its {what} differs\\)"):
            short_run(pair, tmp_path / "out", resume=True, **options)
    short_run(pair, tmp_path / "out", force=True)
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_state_is_named(pair, tmp_path, monkeypatch, damage):
    plain, steps = Loop._step, []

    def stopping(loop):
        if len(steps) == 3:
            raise HybridizeError("stopped")
        steps.append(1)
        plain(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", save_every=1)
    state = tmp_path / "out.distill" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(InputError, match="cannot go on from it"):
        short_run(pair, tmp_path / "out", resume=True, save_every=1)
    shutil.rmtree(tmp_path / "out.distill")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("\ufeff{}\n", "metrics.jsonl: cannot go on from it"),
        ('{"stage": \n', "metrics.jsonl: cannot go on from it"),
        ("7\n", "metrics.jsonl: cannot go on from it"),
        ("{}\n", "metrics.jsonl: cannot go on from it"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, text, complaint):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        keep_metrics(path, 1)
    assert path.read_text() == text


def test_metrics_are_cut_to_the_steps_that_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"stage": "kl", "step": step}) + "\n" for step in range(3)]
    path.write_text("".join(lines) + '{"half a li')
    keep_metrics(path, 2)
    assert path.read_text() == "".join(lines[:2])


@pytest.mark.parametrize("record", [None, '{"student": '])
def test_a_run_that_was_killed_before_it_began_is_not_in_the_way(pair, tmp_path, record):
    (tmp_path / "out.distill").mkdir()
    if record is not None:
        (tmp_path / "out.distill" / "run.partial").write_text(record)
    short_run(pair, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_student_whose_outputs_overflow_is_not_trained(pair, tmp_path):
    teacher, student, text = pair
    broken = tmp_path / "broken"
    shutil.copytree(student, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"].fill_(3e38)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HybridizeError, match=r"kl: the validation loss is (nan|inf) at step 0"):
        short_run((teacher, broken, text), tmp_path / "out", stages=("kl",))
    assert not (tmp_path / "out").exists()
