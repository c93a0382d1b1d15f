"""Two processes, which torchrun starts, train like one."""

import json
import subprocess
import sys

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file

SEVERAL_RUNS = """
import json, sys
from hybridize.__main__ import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(code)
"""
"""One start of torchrun serves all runs, because importing torch takes most of the time."""

RUNS = {
    "mixers": {"train": "mixers"},
    "all": {"train": "all"},
    "fp8": {"stages": ("kl",), "fp8": "fp8", "keep_bf16": 0},
}


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


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_like_one(tmp_path):
    pair = write_pair(tmp_path, keep=(0,))  # the first two blocks are those of the teacher
    (tmp_path / "runs.py").write_text(SEVERAL_RUNS)
    two, one = tmp_path / "two", tmp_path / "one"
    runs = [arguments(pair, two / name, options) for name, options in RUNS.items()]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(tmp_path / "runs.py"), json.dumps(runs),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation before") == len(RUNS)  # one process prints the result
    assert sorted(path.name for path in two.iterdir()) == sorted(RUNS)  # no working directory
    for name in ("mixers", "all"):
        short_run(pair, one / name, **RUNS[name])
        assert_same_training(two / name, one / name)
    in_fp8 = short_run(pair, one / "fp8", **RUNS["fp8"]).stages[-1]
    # Each process rounds the gradients of its own part of a batch, with a scale of its own.
    loss = losses(two / "fp8")[-1]["validation"]
    assert loss == pytest.approx(in_fp8.validation_after, rel=5e-2)
    assert loss < in_fp8.validation_before


def assert_same_training(two, one):
    """Compare metrics and weights of two outputs."""
    assert len(losses(two)) == len(losses(one)) == 22
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        assert ours.pop("stage") == theirs.pop("stage")
        assert ours == pytest.approx(theirs, rel=2e-4)
    ours, theirs = (load_file(directory / "model.safetensors") for directory in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-4)
