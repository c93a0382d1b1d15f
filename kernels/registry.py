"""Which implementation of an operation runs on which device.

A new kernel is one new file and one line in ``_IMPLEMENTATIONS``.
"""

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from hybridize.console import console
from hybridize.errors import InputError

_IMPLEMENTATIONS = {
    "rms_norm": {"reference": "reference.norm", "cpu": "cpu.norm"},
    "gated_rms_norm": {"reference": "reference.norm", "cpu": "cpu.norm"},
    "swiglu": {"reference": "reference.activation", "cpu": "cpu.activation"},
    "squared_relu": {"reference": "reference.activation", "cpu": "cpu.activation"},
    "causal_conv1d": {"reference": "reference.conv", "cpu": "cpu.conv"},
    "causal_conv1d_step": {"reference": "reference.conv"},
    "ssd_scan": {"reference": "reference.ssd_scan", "cpu": "cpu.ssd_scan"},
    "ssd_step": {"reference": "reference.ssd_step"},
    "fp8_scale": {"reference": "reference.fp8"},
    "fp8_quantize": {"reference": "reference.fp8"},
    "fp8_linear": {"reference": "reference.fp8", "cpu": "cpu.fp8"},
    "linear_kl_divergence": {"reference": "reference.linear_kl"},
    "linear_topk_kl_divergence": {"reference": "reference.linear_kl"},
}

_BACKENDS = ("reference", "cpu")


def implementation(operation: str, device: torch.device) -> Callable[..., Any]:
    """Return the function that carries out ``operation`` on tensors of ``device``.

    The fast torch path serves every device; the reference does where it is as fast as torch
    gets. ``HYBRIDIZE_KERNELS=reference|cpu`` prefers one backend for all operations that have it.

    Raises:
        InputError: ``HYBRIDIZE_KERNELS`` names no backend.
    """
    del device  # no kernel of one device only is registered yet
    return _load(operation, os.environ.get("HYBRIDIZE_KERNELS", ""))


@cache
def _load(operation: str, preferred: str) -> Callable[..., Any]:
    choices = _IMPLEMENTATIONS[operation]
    backend = preferred or "cpu"
    if preferred:
        _announce(preferred)
    if backend not in choices:
        backend = "reference"
    module = importlib.import_module(f"hybridize.kernels.{choices[backend]}")
    found: Callable[..., Any] = getattr(module, operation)
    return found


@cache
def _announce(preferred: str) -> None:
    if preferred not in _BACKENDS:
        raise InputError(
            f"HYBRIDIZE_KERNELS={preferred}: no such backend; choose one of {', '.join(_BACKENDS)}"
        )
    console.message(f"kernels: {preferred} (HYBRIDIZE_KERNELS)")
