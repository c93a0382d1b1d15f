"""Helpers for the tests of the Triton kernels: device, random operands, relative errors."""

import os
from functools import partial

import pytest
import random_operands
import torch

pytest.importorskip("triton", reason="needs triton, which has no build for this platform")

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

draw = partial(random_operands.draw, device=DEVICE)


def exact(operands):
    """Return float64 copies that require gradients, of a list or a dictionary."""
    if isinstance(operands, dict):
        return dict(zip(operands, exact(list(operands.values())), strict=True))
    return [t.detach().double().requires_grad_() for t in operands]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the error relative to the norm of ``expected``; NaN if any number is."""
    got, expected = got.detach(), expected.detach()
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch):
    """Fill all new memory with NaN, to find elements that a kernel does not write."""
    original = torch.Tensor.new_empty

    def new_empty(*args, **kwargs):
        tensor = original(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
