"""Norms against plain float64 arithmetic."""

import pytest
import torch

from hybridize.kernels import gated_rms_norm, rms_norm


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm(dtype):
    x, weight = draw(3, 4, 16).to(dtype), draw(16, seed=1).to(dtype)
    wide = x.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=3 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [4, 8, 16])
def test_gated_rms_norm(norm_before_gate, group_size):
    x, gate, weight = draw(2, 3, 16), draw(2, 3, 16, seed=1), draw(16, seed=2)
    silu = gate * torch.sigmoid(gate)
    y = x if norm_before_gate else x * silu
    want = torch.full_like(x, torch.nan)
    for start in range(0, 16, group_size):
        part = y[..., start : start + group_size]
        want[..., start : start + group_size] = (
            part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        )
    want = want * weight * (silu if norm_before_gate else 1)
    got = gated_rms_norm(
        x, gate, weight, 1e-5, group_size=group_size, norm_before_gate=norm_before_gate
    )
    torch.testing.assert_close(got, want)
