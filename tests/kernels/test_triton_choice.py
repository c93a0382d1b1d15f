"""When the Triton kernels are chosen, and that all of them compile for a GPU."""

import importlib
import os
import pkgutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from on_triton import DEVICE, draw

from hybridize.errors import InputError
from hybridize.kernels import causal_conv1d, registry, rms_norm
from hybridize.kernels import triton as triton_package

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh():
    registry.implementation.cache_clear()


def chosen(operation, device):
    preferred = os.environ.get("HYBRIDIZE_KERNELS", "")
    return registry.implementation(operation, device.type == "cuda", preferred).__module__


def test_cuda_devices_get_them_and_others_do_not(monkeypatch):
    monkeypatch.delenv("HYBRIDIZE_KERNELS", raising=False)
    assert chosen("ssd_scan", CUDA) == "hybridize.kernels.triton.ssd_scan"
    assert chosen("linear_topk_kl_divergence", CUDA) == "hybridize.kernels.reference.linear_kl"
    assert chosen("ssd_scan", CPU) == "hybridize.kernels.eager.ssd_scan"


def test_devices_without_triton_get_torch(monkeypatch):
    monkeypatch.delenv("HYBRIDIZE_KERNELS", raising=False)
    monkeypatch.setattr(registry, "_has_triton", lambda: False)
    assert chosen("ssd_scan", CUDA) == "hybridize.kernels.eager.ssd_scan"
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    with pytest.raises(InputError, match="triton is not installed"):
        chosen("ssd_scan", CUDA)


def test_they_are_refused_where_they_cannot_run(monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match="need tensors on a CUDA device"):
        chosen("ssd_scan", CPU)


def test_the_public_operations_run_them(monkeypatch):
    x, weight = draw(2, 5, 8), draw(8, 4)
    want = causal_conv1d(x.cpu(), weight.cpu())[0], rms_norm(x.cpu(), weight[:, 0].cpu(), 1e-5)
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    got = causal_conv1d(x, weight)[0], rms_norm(x, weight[:, 0], 1e-5)
    assert x.device.type == DEVICE
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.cpu(), right)


def lines_of(script, *arguments, **environment):
    """Run a script with no GPU at hand and no interpreter; return the fields of what it prints."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"TRITON_INTERPRET": "0"},
    )
    assert run.returncode == 0, run.stderr
    return [line.split("\t") for line in run.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for NVIDIA on Linux")
def test_all_of_them_compile_for_hopper(tmp_path):
    """With no GPU at hand: this is what the interpreter cannot tell."""
    lines = lines_of("compile_for_hopper.py", "bfloat16", TRITON_CACHE_DIR=str(tmp_path))
    kernels = {name for name, *_ in lines}
    assert kernels == {
        "scan_forward", "scan_states", "scan_gradients", "scan_step",
        "conv_forward", "conv_backward", "conv_step",
        "norm_forward", "norm_backward", "kl_rows",
        "swiglu_forward", "swiglu_backward", "squared_relu_forward", "squared_relu_backward",
        "quantize", "block_scaled_matmul", "conv_and_state", "gated_norm",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for NVIDIA on Linux")
def test_no_length_compiles_or_tunes_anything_anew():
    keys = defaultdict(lambda: defaultdict(set))
    for length, kernel, key in lines_of(
        "print_launch_keys.py", *["1", "2", "15", "16", "17", "100", "1000"]
    ):
        keys[kernel][length].add(key)
    for kernel, by_length in keys.items():
        # The product by blocks has a second shape for decoding: that is all.
        allowed = 2 if kernel == "block_scaled_matmul" else len(by_length["100"])
        assert len(set.union(*by_length.values())) == allowed, kernel


def test_nothing_is_tuned_at_run_time():
    from triton.runtime.autotuner import Autotuner, Heuristics

    modules = [
        importlib.import_module(f"hybridize.kernels.triton.{module.name}")
        for module in pkgutil.iter_modules(triton_package.__path__)
    ]
    named = [value for module in modules for value in vars(module).values()]
    assert any(hasattr(value, "fn") for value in named)  # kernels are found at all
    assert not [value for value in named if isinstance(value, Autotuner | Heuristics)]
