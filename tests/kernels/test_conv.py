"""The causal convolution against plain float64 arithmetic, token by token."""

import pytest
import torch
from random_operands import draw

from hybridize.kernels import causal_conv1d, causal_conv1d_step
from hybridize.kernels.eager import conv as eager


def convolve(x, weight, bias, before):
    """Compute the convolution tap by tap; ``before`` are the inputs before ``x``."""
    width = weight.shape[1]
    full = torch.cat([before, x], dim=1)
    out = torch.full_like(x, torch.nan)
    for t in range(x.shape[1]):
        total = sum(full[:, t + tap] * weight[:, tap] for tap in range(width))
        out[:, t] = total + (0 if bias is None else bias)
    return out * torch.sigmoid(out)


@pytest.fixture(params=["reference", "eager"])
def backend(request, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", request.param)
    monkeypatch.setattr(eager, "_TILE", 2 * 5 * 4)  # tiles of 4 tokens
    return request.param


@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_continues_from_conv_state(backend, length, width, with_bias):
    x, weight = draw(2, length, 5), draw(5, width, seed=1)
    bias = draw(5, seed=2) if with_bias else None
    before = draw(2, width - 1, 5, seed=3)
    y, conv_state = causal_conv1d(x, weight, bias, conv_state=before)
    torch.testing.assert_close(y, convolve(x, weight, bias, before))
    assert torch.equal(conv_state, torch.cat([before, x], 1)[:, length:])
    fresh, _ = causal_conv1d(x, weight, bias)
    torch.testing.assert_close(fresh, convolve(x, weight, bias, torch.zeros_like(before)))


def test_steps_equal_the_whole_sequence(backend):
    x, weight, bias = draw(2, 9, 5), draw(5, 4, seed=1), draw(5, seed=2)
    expected, last = causal_conv1d(x, weight, bias)
    conv_state = torch.zeros(2, 3, 5, dtype=torch.float64)
    for t in range(9):
        torch.testing.assert_close(
            causal_conv1d_step(x[:, t], conv_state, weight, bias), expected[:, t]
        )
    assert torch.equal(conv_state, last)


def test_packed_sequences_are_convolved_separately(backend):
    x, weight, bias = draw(1, 12, 5), draw(5, 4, seed=1), draw(5, seed=2)
    seq_idx = torch.tensor([[0, 0, 1, 0, 0, 0, 0, 0, 3, 3, 3, 3]])  # 0 occurs twice
    y, last = causal_conv1d(x, weight, bias, seq_idx=seq_idx)
    for part in (slice(0, 2), slice(2, 3), slice(3, 8), slice(8, 12)):
        alone, conv_state = causal_conv1d(x[:, part], weight, bias)
        torch.testing.assert_close(y[:, part], alone)
    assert torch.equal(last, conv_state)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_match_finite_differences(backend, packed, with_bias):
    x, weight, before = draw(2, 7, 5), draw(5, 4, seed=1), draw(2, 3, 5, seed=3)
    leaves = [x, weight, before, *([draw(5, seed=2)] if with_bias else [])]
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]]) if packed else None

    def convolution(x, weight, conv_state, bias=None):
        return causal_conv1d(x, weight, bias, conv_state=conv_state, seq_idx=seq_idx)

    assert torch.autograd.gradcheck(convolution, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 6e-4)]
)
def test_narrow_dtypes_stay_within_error_bounds(backend, dtype, bound):
    leaves = [draw(2, 40, 5), draw(5, 4, seed=1), draw(5, seed=2)]
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    dy = draw(2, 40, 5, seed=4).to(dtype)
    y, _ = causal_conv1d(*leaves)
    expected = convolve(*exact, torch.zeros(2, 3, 5, dtype=torch.float64))
    assert y.dtype == dtype
    got = [y, *torch.autograd.grad(y, leaves, dy)]
    expected_results = [expected, *torch.autograd.grad(expected, exact, dy.double())]
    for actual, expected in zip(got, expected_results, strict=True):
        assert (actual.double() - expected).norm() / expected.norm() < bound
