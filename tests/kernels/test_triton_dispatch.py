"""Operations choose the right backend, and all Triton kernels compile for a GPU."""

import importlib
import os
import pkgutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from triton_testing import DEVICE, draw

from hybridize.errors import InputError
from hybridize.kernels import causal_conv1d, registry, rms_norm
from hybridize.kernels import triton as triton_package

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_cache():
    registry.implementation.cache_clear()


def chosen(operation, device):
    preferred = os.environ.get("HYBRIDIZE_KERNELS", "")
    return registry.implementation(operation, device.type == "cuda", preferred).__module__


def test_only_cuda_tensors_get_triton_kernels(monkeypatch):
    monkeypatch.delenv("HYBRIDIZE_KERNELS", raising=False)
    assert chosen("ssd_scan", CUDA) == "hybridize.kernels.triton.ssd_scan"
    assert chosen("linear_topk_kl_divergence", CUDA) == "hybridize.kernels.reference.linear_kl"
    assert chosen("ssd_scan", CPU) == "hybridize.kernels.eager.ssd_scan"


def test_cuda_tensors_run_eager_code_without_triton(monkeypatch):
    monkeypatch.delenv("HYBRIDIZE_KERNELS", raising=False)
    monkeypatch.setattr(registry, "_has_triton", lambda: False)
    assert chosen("ssd_scan", CUDA) == "hybridize.kernels.eager.ssd_scan"
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    with pytest.raises(InputError, match="triton is not installed"):
        chosen("ssd_scan", CUDA)


def test_triton_on_the_cpu_is_rejected_without_the_interpreter(monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match="need tensors on a CUDA device"):
        chosen("ssd_scan", CPU)


def test_public_operations_run_triton_kernels(monkeypatch):
    x, weight = draw(2, 5, 8), draw(8, 4)
    on_cpu = causal_conv1d(x.cpu(), weight.cpu())[0], rms_norm(x.cpu(), weight[:, 0].cpu(), 1e-5)
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    got = causal_conv1d(x, weight)[0], rms_norm(x, weight[:, 0], 1e-5)
    assert x.device.type == DEVICE
    for actual, expected in zip(got, on_cpu, strict=True):
        torch.testing.assert_close(actual.cpu(), expected)


def run_script(script, *arguments, **environment):
    """Run a script without GPU and interpreter; return the fields of each line that it prints."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"TRITON_INTERPRET": "0"},
    )
    assert run.returncode == 0, run.stderr
    return [line.split("\t") for line in run.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for NVIDIA on Linux")
def test_all_kernels_compile_for_hopper(request, tmp_path):
    """The interpreter also accepts kernels that do not compile. Compiled kernels are cached."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("triton") if cache is not None else tmp_path
    lines = run_script("compile_for_hopper.py", "bfloat16", TRITON_CACHE_DIR=str(folder))
    kernels = {name for name, *_ in lines}
    assert kernels == {
        "scan_forward", "scan_states", "scan_gradients", "scan_step",
        "conv_forward", "conv_backward", "conv_step",
        "norm_forward", "norm_backward", "kl_rows",
        "swiglu_forward", "swiglu_backward", "squared_relu_forward", "squared_relu_backward",
        "quantize", "block_scaled_matmul", "conv_and_state", "gated_norm",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for NVIDIA on Linux")
def test_no_kernel_is_compiled_per_length():
    keys = defaultdict(lambda: defaultdict(set))
    # Triton specializes on 1 and on multiples of 16.
    for length, kernel, key in run_script("print_launch_keys.py", "1", "16", "17", "1000"):
        keys[kernel][length].add(key)
    for kernel, by_length in keys.items():
        # The block-scaled product has a second block size, for decoding.
        allowed = 2 if kernel == "block_scaled_matmul" else len(by_length["17"])
        assert len(set.union(*by_length.values())) == allowed, kernel


def test_no_kernel_is_tuned_at_run_time():
    from triton.runtime.autotuner import Autotuner, Heuristics

    modules = [
        importlib.import_module(f"hybridize.kernels.triton.{module.name}")
        for module in pkgutil.iter_modules(triton_package.__path__)
    ]
    named = [value for module in modules for value in vars(module).values()]
    assert any(hasattr(value, "fn") for value in named)  # some kernels were found
    assert not [value for value in named if isinstance(value, Autotuner | Heuristics)]
