"""Helpers of the tests of the Triton kernels: their device, random operands, and errors."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which has no build for this platform")

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def exact(operands):
    """Return float64 copies that require gradients, of a list or a dictionary."""
    if isinstance(operands, dict):
        return dict(zip(operands, exact(list(operands.values())), strict=True))
    return [t.detach().double().requires_grad_() for t in operands]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference relative to the norm of ``expected``; NaN if any is NaN."""
    got, expected = got.detach(), expected.detach()
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch):
    """Fill all new memory with NaN, so that an element that a kernel does not write shows."""
    original = torch.Tensor.new_empty

    def new_empty(*args, **kwargs):
        made = original(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
