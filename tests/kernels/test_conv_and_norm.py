"""Convolution and norms against plain float64 arithmetic."""

import pytest
import torch

from hybridize.kernels import causal_conv1d, causal_conv1d_step, gated_rms_norm, rms_norm


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def convolve(x, weight, bias, before):
    """Return the convolution tap by tap; ``before`` are the inputs in front of ``x``."""
    width = weight.shape[1]
    full = torch.cat([before, x], dim=1)
    out = torch.full_like(x, torch.nan)
    for t in range(x.shape[1]):
        total = sum(full[:, t + tap] * weight[:, tap] for tap in range(width))
        out[:, t] = total + (0 if bias is None else bias)
    return out * torch.sigmoid(out)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_and_its_continuation(length, width, with_bias):
    x, weight = draw(2, length, 5), draw(5, width, seed=1)
    bias = draw(5, seed=2) if with_bias else None
    before = draw(2, width - 1, 5, seed=3)
    y, window = causal_conv1d(x, weight, bias, window=before)
    torch.testing.assert_close(y, convolve(x, weight, bias, before))
    assert torch.equal(window, torch.cat([before, x], 1)[:, length:])
    fresh, _ = causal_conv1d(x, weight, bias)
    torch.testing.assert_close(fresh, convolve(x, weight, bias, torch.zeros_like(before)))


def test_steps_make_the_whole():
    x, weight, bias = draw(2, 9, 5), draw(5, 4, seed=1), draw(5, seed=2)
    want, last = causal_conv1d(x, weight, bias)
    window = torch.zeros(2, 3, 5, dtype=torch.float64)
    for t in range(9):
        torch.testing.assert_close(causal_conv1d_step(x[:, t], window, weight, bias), want[:, t])
    assert torch.equal(window, last)


def test_packed_sequences_begin_with_an_empty_window():
    x, weight, bias = draw(1, 12, 5), draw(5, 4, seed=1), draw(5, seed=2)
    seq_idx = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]])
    y, _ = causal_conv1d(x, weight, bias, seq_idx=seq_idx)
    for number in range(4):
        part = seq_idx[0] == number
        torch.testing.assert_close(y[:, part], causal_conv1d(x[:, part], weight, bias)[0])


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
