"""Two processes over gloo do what one does."""

import subprocess
import sys

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file

OPTIONS = [
    "--seq-len", "16", "--batch-size", "4", "--validation", "4", "--validate-every", "4",
    "--device", "cpu", "--quiet", "--save-every", "3",
]  # fmt: skip


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("train", ["mixers", "all"])
def test_two_processes_have_the_losses_of_one(tmp_path, train):
    pair = write_pair(tmp_path)
    teacher, student, text = pair
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "hybridize", "distill", student, "-o", tmp_path / "two", "--teacher", teacher,
        "--data", text, "--align-tokens", "512", "--kl-tokens", "512", "--train", train, *OPTIONS,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    short_run(pair, tmp_path / "one", train=train)
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(two) == len(one) == 22
    for ours, theirs in zip(two, one, strict=True):
        assert ours.pop("stage") == theirs.pop("stage")
        assert ours == pytest.approx(theirs, rel=2e-4)
    mine, theirs = (load_file(tmp_path / d / "model.safetensors") for d in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=2e-4)
    assert not (tmp_path / "two.distill").exists()
