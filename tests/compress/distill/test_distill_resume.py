"""Interrupted and killed runs continue; damaged states are noticed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from distilling import assert_same_weights, losses, short_run, stop_after

from hybridize.__main__ import main
from hybridize.compress.distill.distributed import ALONE
from hybridize.compress.distill.saved_states import SavedStates
from hybridize.compress.distill.trainer_state import truncate_metrics
from hybridize.errors import HybridizeError, InputError


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_resumed_run_writes_the_same_bits(pair, done, tmp_path, monkeypatch, stop):
    """The run stops after some steps, between two saves."""
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", save_every=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="`resume=True` continues it"):
        short_run(pair, tmp_path / "out", save_every=2)
    short_run(pair, tmp_path / "out", save_every=2, resume=True)
    assert losses(tmp_path / "out") == losses(done[0])
    assert_same_weights(tmp_path / "out", done[0])
    assert not (tmp_path / "out.distill").exists()


@pytest.mark.parametrize("method", ["training_step", "validation_step"])
def test_an_interrupted_run_continues_from_the_step_before(
    pair, done, tmp_path, monkeypatch, method
):
    """The state is saved at the interruption: not even one step is computed again."""
    from hybridize.compress.distill.stages.align import Align

    original, calls = getattr(Align, method), []

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *arguments)

    before = 4 if method == "validation_step" else 5
    if method == "validation_step":  # one batch each: the validation of step 0, 4 and 8
        calls += [()] * 4
    with monkeypatch.context() as patch:
        patch.setattr(Align, method, interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            short_run(pair, tmp_path / "out", save_every=100)
    assert "`resume` continues" in caught.value.__notes__[-1]
    state = SavedStates(tmp_path / "out.distill", ALONE).load_progress()
    assert (state.stage_index, state.step) == (0, before)
    short_run(pair, tmp_path / "out", resume=True)
    assert losses(tmp_path / "out") == losses(done[0])
    assert_same_weights(tmp_path / "out", done[0])


def test_an_interruption_within_an_update_saves_nothing(pair, tmp_path, monkeypatch):
    """Some parameters would be those of the next step."""

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            short_run(pair, tmp_path / "out")
    assert not (tmp_path / "out.distill" / "state.safetensors").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_can_be_resumed(pair, done, tmp_path):
    teacher, student, text = pair
    options = [
        student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text, "--seq-len", 16,
        "--batch-size", 4, "--validation-sequences", 4, "--validate-every", 4,
        "--align-tokens", 512, "--kl-tokens", 512, "--save-every", 1, "--device", "cpu", "--quiet",
    ]  # fmt: skip
    command = [sys.executable, "-m", "hybridize", "distill", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    work = tmp_path / "out.distill"
    until = time.monotonic() + 120
    while (
        not any(work.glob("state-*/progress.json"))
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(work.glob("state-*")) or (tmp_path / "out").exists()
    if not (tmp_path / "out").exists():
        assert main(["distill", *map(str, options), "--resume"]) == 0
    assert_same_weights(tmp_path / "out", done[0])


def test_a_run_with_other_options_is_not_resumed(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out")
    for options, name in (
        ({"seed": 1}, "seed"),
        ({"data": ("teacher",)}, "data"),
        ({"stage_tokens": {"align": 512, "kl": 256}}, "stage_tokens"),
    ):
        with pytest.raises(InputError, match=f"another run \\(different {name}\\)"):
            short_run(pair, tmp_path / "out", resume=True, **options)
    short_run(pair, tmp_path / "out", force=True)
    assert (tmp_path / "out").exists()


def test_a_changed_number_in_a_state_is_noticed(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", save_every=1)
    newest = max((tmp_path / "out.distill").glob("state-*"))
    progress = newest / "progress.json"
    progress.write_text(progress.read_text().replace('"skipped": 0', '"skipped": 1'))
    with pytest.raises(InputError, match=r"the checksum of progress\.json is wrong"):
        short_run(pair, tmp_path / "out", resume=True, save_every=1)


@pytest.mark.parametrize("pattern", ["*.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_state_is_bad_input(pair, tmp_path, monkeypatch, damage, pattern):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", save_every=1)
    newest = max((tmp_path / "out.distill").glob("state-*"))
    state = next(newest.glob(pattern))
    state.write_bytes(state.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(InputError, match=f"{newest.name}: cannot continue from this state"):
        short_run(pair, tmp_path / "out", resume=True, save_every=1)
    shutil.rmtree(tmp_path / "out.distill")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("\ufeff{}\n", "metrics.jsonl: cannot continue from this file"),
        ('{"stage": \n', "metrics.jsonl: cannot continue from this file"),
        ("7\n", "metrics.jsonl: cannot continue from this file"),
        ("{}\n", "metrics.jsonl: cannot continue from this file"),
        ('{"stage": "f8", "step": 1}\n', "metrics.jsonl: cannot continue from this file"),
    ],
)
def test_a_damaged_metrics_file_is_bad_input(tmp_path, text, complaint):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        truncate_metrics(path, 1)
    assert path.read_text() == text


def test_truncate_metrics_keeps_the_first_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"stage": "kl", "step": step}) + "\n" for step in range(3)]
    path.write_text("".join(lines) + '{"half a li')
    truncate_metrics(path, 2)
    assert path.read_text() == "".join(lines[:2])


@pytest.mark.parametrize("record", [None, '{"student": '])
def test_an_incomplete_working_directory_is_replaced(pair, tmp_path, record):
    (tmp_path / "out.distill").mkdir()
    if record is not None:
        (tmp_path / "out.distill" / "run.partial").write_text(record)
    short_run(pair, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
