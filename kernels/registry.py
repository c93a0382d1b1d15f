"""Which implementation of an operation runs on which device.

A new kernel is one new file and one line in ``_IMPLEMENTATIONS``.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from hybridize.console import console
from hybridize.errors import InputError

_IMPLEMENTATIONS = {
    "rms_norm": {"reference": "reference.norm", "eager": "eager.norm", "triton": "triton.norm"},
    "gated_rms_norm": {
        "reference": "reference.norm",
        "eager": "eager.norm",
        "triton": "triton.norm",
    },
    "swiglu": {
        "reference": "reference.activation",
        "eager": "eager.activation",
        "triton": "triton.activation",
    },
    "squared_relu": {
        "reference": "reference.activation",
        "eager": "eager.activation",
        "triton": "triton.activation",
    },
    "linear": {"reference": "reference.linear", "eager": "eager.linear"},
    "squared_relu_mlp": {"reference": "reference.mlp", "eager": "eager.mlp"},
    "causal_conv1d": {
        "reference": "reference.conv",
        "eager": "eager.conv",
        "triton": "triton.conv",
    },
    "causal_conv1d_step": {"reference": "reference.conv", "triton": "triton.conv"},
    "ssd_scan": {
        "reference": "reference.ssd_scan",
        "eager": "eager.ssd_scan",
        "triton": "triton.ssd_scan",
    },
    "ssd_step": {"reference": "reference.ssd_step", "triton": "triton.ssd_step"},
    "mamba2_step": {"reference": "reference.mamba2_step", "triton": "triton.mamba2_step"},
    "linear_kl_divergence": {
        "reference": "reference.linear_kl",
        "eager": "eager.linear_kl",
        "triton": "triton.linear_kl",
    },
    "fp8_scale": {"reference": "reference.fp8"},
    "fp8_quantize": {"reference": "reference.fp8", "triton": "triton.fp8"},
    "fp8_linear": {"reference": "reference.fp8", "eager": "eager.fp8", "triton": "triton.fp8"},
    "linear_topk_kl_divergence": {"reference": "reference.linear_kl"},
}

_BACKENDS = ("triton", "eager", "reference")
"""From the most to the least particular: what has no kernel in one has its kernel in the next."""


def implementation(operation: str, device: torch.device) -> Callable[..., Any]:
    """Return the function that carries out ``operation`` on tensors of ``device``.

    Triton kernels serve CUDA devices, fast torch paths every other; the reference does where it is
    as fast as torch gets. ``HYBRIDIZE_KERNELS=reference|eager|triton`` prefers one backend for all
    operations that have it.

    Raises:
        InputError: ``HYBRIDIZE_KERNELS`` names no backend, or one that cannot run here.
    """
    return _load(operation, device.type, os.environ.get("HYBRIDIZE_KERNELS", ""))


@cache
def _load(operation: str, device: str, preferred: str) -> Callable[..., Any]:
    if preferred:
        _check(preferred, device)
        _announce(preferred)
    backend = preferred or ("triton" if device == "cuda" and _has_triton() else "eager")
    choices = _IMPLEMENTATIONS[operation]
    chosen = next(name for name in _BACKENDS[_BACKENDS.index(backend) :] if name in choices)
    module = importlib.import_module(f"hybridize.kernels.{choices[chosen]}")
    found: Callable[..., Any] = getattr(module, operation)
    return found


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check(preferred: str, device: str) -> None:
    if preferred not in _BACKENDS:
        raise InputError(
            f"HYBRIDIZE_KERNELS={preferred}: no such backend; choose one of {', '.join(_BACKENDS)}"
        )
    if preferred == "triton":
        if not _has_triton():
            raise InputError(
                "HYBRIDIZE_KERNELS=triton: triton is not installed; pip install triton"
            )
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(
                f"HYBRIDIZE_KERNELS=triton: no kernels for {device} tensors; "
                "leave it unset, or test them with TRITON_INTERPRET=1"
            )


@cache
def _announce(preferred: str) -> None:
    console.message(f"kernels: {preferred} (HYBRIDIZE_KERNELS)")
