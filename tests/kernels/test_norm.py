"""Norms against plain float64 arithmetic."""

import pytest
import torch
from random_operands import draw

from hybridize.kernels import gated_rms_norm, rms_norm
from hybridize.kernels.eager import rows


@pytest.fixture(params=["reference", "eager"], autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", request.param)
    monkeypatch.setattr(rows, "_TILE", 1)  # tiles of 32 rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm(dtype):
    x, weight = draw(3, 15, 16).to(dtype), draw(16, seed=1).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=3 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [4, 8, 16])
def test_gated_rms_norm(norm_before_gate, group_size):
    x, gate, weight = draw(2, 3, 16), draw(2, 3, 16, seed=1), draw(16, seed=2)
    silu = gate * torch.sigmoid(gate)
    y = x if norm_before_gate else x * silu
    expected = torch.full_like(x, torch.nan)
    for start in range(0, 16, group_size):
        part = y[..., start : start + group_size]
        expected[..., start : start + group_size] = (
            part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        )
    expected = expected * weight * (silu if norm_before_gate else 1)
    got = gated_rms_norm(
        x, gate, weight, 1e-5, group_size=group_size, norm_before_gate=norm_before_gate
    )
    torch.testing.assert_close(got, expected)


def test_rms_norm_gradient_matches_finite_differences():
    leaves = [draw(3, 15, 4).requires_grad_(), draw(4, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-2), leaves)


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gated_rms_norm_gradient_matches_finite_differences(norm_before_gate):
    leaves = [draw(2, 17, 4), draw(2, 17, 4, seed=1), draw(4, seed=2)]

    def norm(x, gate, weight):
        return gated_rms_norm(
            x, gate, weight, 1e-2, group_size=2, norm_before_gate=norm_before_gate
        )

    assert torch.autograd.gradcheck(norm, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_backends_agree_in_narrow_dtypes(monkeypatch, dtype, norm_before_gate):
    """Forward results are the same bits; gradients agree within rounding."""
    leaves = [draw(70, 16), draw(70, 16, seed=1), draw(16, seed=2)]
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    dy = draw(70, 16, seed=3).to(dtype)
    results = {}
    for name in ("reference", "eager"):
        monkeypatch.setenv("HYBRIDIZE_KERNELS", name)
        plain = rms_norm(leaves[0], leaves[2], 1e-5)
        gated = gated_rms_norm(*leaves, 1e-5, group_size=4, norm_before_gate=norm_before_gate)
        results[name] = plain, gated, torch.autograd.grad(plain + gated, leaves, dy)
    assert torch.equal(results["eager"][0], results["reference"][0])
    assert torch.equal(results["eager"][1], results["reference"][1])
    for eager, reference in zip(results["eager"][2], results["reference"][2], strict=True):
        torch.testing.assert_close(
            eager, reference, rtol=64 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps
        )
