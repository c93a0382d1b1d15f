"""Two processes, which torchrun starts, train like one."""

import json
import subprocess
import sys

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)

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


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Holds the outputs of all runs in two processes, and the models and text."""
    directory = tmp_path_factory.mktemp("distributed")
    pair = write_pair(directory)
    (directory / "runs.py").write_text(SEVERAL_RUNS)
    runs = [arguments(pair, directory / name, options) for name, options in RUNS.items()]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(directory / "runs.py"), json.dumps(runs),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


def one_process(directory, name, output):
    pair = tuple(directory / part for part in ("teacher", "student", "text.jsonl"))
    return short_run(pair, output, **RUNS[name])


@pytest.mark.parametrize("name", ["mixers", "all"])
def test_two_processes_have_the_losses_of_one(directory, tmp_path, name):
    one_process(directory, name, tmp_path / "one")
    two, one = losses(directory / name), losses(tmp_path / "one")
    assert len(two) == len(one) == 22
    for ours, theirs in zip(two, one, strict=True):
        assert ours.pop("stage") == theirs.pop("stage")
        assert ours == pytest.approx(theirs, rel=2e-4)
    two, one = (load_file(d / "model.safetensors") for d in (directory / name, tmp_path / "one"))
    for tensor_name, value in one.items():
        torch.testing.assert_close(two[tensor_name], value, rtol=1e-3, atol=2e-4)
    assert not (directory / f"{name}.distill").exists()


def test_two_processes_train_in_fp8_like_one(directory, tmp_path):
    one = one_process(directory, "fp8", tmp_path / "one").stages[-1]
    record = json.loads((directory / "fp8" / "hybridize.json").read_text())["steps"][-1]
    two = record["metrics"]["stages"][-1]
    # Each process rounds gradients of its own part of a batch, with a scale of its own.
    assert two["validation_after"] == pytest.approx(one.validation_after, rel=5e-2)
    assert two["validation_after"] < one.validation_before
