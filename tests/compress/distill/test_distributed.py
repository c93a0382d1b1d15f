"""Two processes, which torchrun starts, train like one, and each holds only its share."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file

from hybridize.__main__ import main

UNEVEN = {"batch_size": 3, "global_batch_size": 7, "validation_sequences": 5, "eval_every": 4}
RUNS = {
    "mixers": {"train": "mixers", "cache_teacher": 4},
    "all": {"train": "all"},
    # Four steps of 3, 3 and 1 sequences, and 5 for validation, in two processes:
    "uneven": {"train": "all", **UNEVEN},
    "answers": {"loss_on": "completion", "label_weight": 0.3, **UNEVEN},
    "fp8": {"stages": ("kl",), "fp8": "fp8", "keep_bf16": 0},
}
SCRIPT = Path(__file__).with_name("several_runs.py")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)


def arguments(pair, output, options):
    teacher, student, text = pair
    names = options.get("stages", ("align", "kl"))
    words = [
        "distill", student, "-o", output, "--teacher", teacher, "--data", text,
        "--seq-len", 16, "--batch-size", 4, "--validation-sequences", 4, "--validate-every", 4,
        "--device", "cpu", "--quiet", "--save-every", 3, "--stages", ",".join(names),
    ]  # fmt: skip
    for name in names:
        words += [f"--{name}-tokens", 512]
    for name in options.keys() - {"stages"}:
        words += [f"--{name.replace('_', '-')}", options[name]]
    return list(map(str, words))


def torchrun(runs, folder):
    """Run command lines in two processes; return the finished process of torchrun.

    Args:
        runs: the arguments of each command line, and the ``signal`` of `several_runs` or None.
        folder: the working directory.
    """
    requests = [{"arguments": words, "signal": sent} for words, sent in runs]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(SCRIPT), json.dumps(requests),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder)


def test_two_processes_train_like_one(tmp_path):
    pair = write_pair(tmp_path, keep=(0,))  # the first two blocks are those of the teacher
    two, one = tmp_path / "two", tmp_path / "one"
    answers = tmp_path / "answers.jsonl"
    rows = [{"prompt": "abc" * (n % 5 + 1), "completion": "de" * (n % 7 + 1)} for n in range(150)]
    answers.write_text("\n".join(map(json.dumps, rows)))
    texts = {"answers": (*pair[:2], answers)}
    runs = [arguments(texts.get(name, pair), two / name, options) for name, options in RUNS.items()]
    done = torchrun([(words, None) for words in runs], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation before") == len(RUNS)  # one process prints the result
    assert sorted(path.name for path in two.iterdir()) == sorted(RUNS)  # no working directory
    for name, lines in (("mixers", 22), ("all", 22), ("uneven", 16), ("answers", 16)):
        short_run(texts.get(name, pair), one / name, **RUNS[name])
        assert_same_training(two / name, one / name, lines)
    in_fp8 = short_run(pair, one / "fp8", **RUNS["fp8"]).stages[-1]
    # Each process rounds the gradients of its own part of a batch, with a scale of its own.
    loss = losses(two / "fp8")[-1]["validation"]
    assert loss == pytest.approx(in_fp8.validation_after, rel=5e-2)
    assert loss < in_fp8.validation_before
    assert_reads_its_share(pair, tmp_path)


def assert_reads_its_share(pair, folder):
    """Check that each process read half of both checkpoints; vectors are whole in both."""
    total = sum((path / "model.safetensors").stat().st_size for path in pair[:2])
    vectors = sum(
        tensor.nbytes
        for path in pair[:2]
        for tensor in load_file(path / "model.safetensors").values()
        if tensor.ndim < 2
    )
    for rank in range(2):
        for read in json.loads((folder / f"read-{rank}.json").read_text()):
            assert 0.45 * total < read < 0.51 * total + vectors


def test_stopped_and_killed_processes_continue_as_two_or_as_one(tmp_path):
    pair = write_pair(tmp_path, keep=(0,))
    whole, stopped, alone = (tmp_path / name for name in ("whole", "stopped", "alone"))
    options = {"train": "all", "patience": 3}
    words = [*arguments(pair, stopped, options), "--save-every", "2"]
    to_second = (signal.SIGTERM, 11, [1])
    done = torchrun([(arguments(pair, whole, options), None), (words, to_second)], tmp_path)
    assert "exitcode  : 143" in done.stderr
    assert done.stderr.count("stopped by SIGTERM; the same command with --resume continues") == 1
    assert len(list((tmp_path / "stopped.distill" / "state-1-3").glob("shard-*"))) == 2
    resume = [*words, "--resume"]
    done = torchrun([(resume, (signal.SIGKILL, 2, [0, 1]))], tmp_path)
    assert done.returncode
    assert not stopped.exists()
    states = {path.name for path in (tmp_path / "stopped.distill").glob("state-*")}
    assert states == {"state-1-3", "state-1-4"}
    shutil.copytree(tmp_path / "stopped.distill", tmp_path / "alone.distill")
    done = torchrun([(resume, None)], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(stopped) == losses(whole)
    weights = [(path / "model.safetensors").read_bytes() for path in (stopped, whole)]
    assert weights[0] == weights[1]
    one = [str(alone) if word == str(stopped) else word for word in resume]
    assert main(one) == 0
    assert_same_training(alone, whole)


def assert_same_training(two, one, lines=22):
    """Compare metrics and weights of two outputs."""
    assert len(losses(two)) == len(losses(one)) == lines
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        assert ours.pop("stage") == theirs.pop("stage")
        assert ours == pytest.approx(theirs, rel=2e-4)
    ours, theirs = (load_file(directory / "model.safetensors") for directory in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-4)
