"""Activations against plain float64 arithmetic."""

import pytest
import torch
from random_operands import draw

from hybridize.kernels import squared_relu, swiglu
from hybridize.kernels.eager import rows


@pytest.fixture(params=["reference", "eager"], autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", request.param)
    monkeypatch.setattr(rows, "_TILE", 1)  # tiles of 32 rows


def test_swiglu():
    gate, up = draw(3, 15, 16), draw(3, 15, 16, seed=1)
    torch.testing.assert_close(swiglu(gate, up), gate / (1 + torch.exp(-gate)) * up)


def test_squared_relu():
    x = draw(3, 15, 16)
    torch.testing.assert_close(squared_relu(x), torch.where(x > 0, x * x, 0.0))


def test_gradients_match_finite_differences():
    gate, up = draw(2, 17, 4).requires_grad_(), draw(2, 17, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, [gate, up])
    assert torch.autograd.gradcheck(squared_relu, [gate])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_agree_in_narrow_dtypes(monkeypatch, dtype):
    """Forward results are the same bits; gradients agree within rounding."""
    gate, up = (draw(70, 16, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
    dy = draw(70, 16, seed=3).to(dtype)
    results = {}
    for name in ("reference", "eager"):
        monkeypatch.setenv("HYBRIDIZE_KERNELS", name)
        gated, squared = swiglu(gate, up), squared_relu(gate)
        results[name] = gated, squared, torch.autograd.grad(gated + squared, [gate, up], dy)
    assert torch.equal(results["eager"][0], results["reference"][0])
    assert torch.equal(results["eager"][1], results["reference"][1])
    for eager, reference in zip(results["eager"][2], results["reference"][2], strict=True):
        torch.testing.assert_close(
            eager,
            reference,
            rtol=2e-2 if dtype != torch.float32 else 1e-5,
            atol=1e-2 if dtype != torch.float32 else 1e-6,
        )


def test_operands_may_have_any_strides():
    """Transposed, every other column, and empty."""
    gate, up = draw(16, 70).T, draw(70, 32, seed=1)[:, ::2]
    torch.testing.assert_close(swiglu(gate, up), swiglu(gate.clone(), up.clone()))
    assert swiglu(gate[:0], up[:0]).shape == (0, 16)
