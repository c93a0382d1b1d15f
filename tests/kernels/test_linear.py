"""Linear layers in narrow dtypes against float64 arithmetic, on any CPU."""

import pytest
import torch
import torch.nn.functional as F

from hybridize.kernels import linear
from hybridize.kernels.eager import linear as eager

BOUNDS = {torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(autouse=True)
def no_native_products(monkeypatch):
    """Act as a CPU without native bf16/fp16 products; convert three weight rows at a time."""
    monkeypatch.setattr(eager, "is_native", lambda dtype: dtype not in BOUNDS)
    monkeypatch.setattr(eager, "_BLOCK", 19 * 3)


def operands(dtype, tokens=20, bias=True):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, tokens, 19), (11, 19)] + [(11,)] * bias
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


def with_gradients(function, given):
    y = function(*given)
    dy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, given, dy)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_values_and_gradients(dtype, bias):
    given = operands(dtype, bias=bias)
    exact = [t.detach().double().requires_grad_() for t in given]
    for actual, expected in zip(
        with_gradients(linear, given), with_gradients(F.linear, exact), strict=True
    ):
        assert actual.dtype == dtype
        assert (actual.double() - expected).norm() < BOUNDS[dtype] * expected.norm()


@pytest.mark.parametrize("index", range(3))
def test_a_single_gradient(index):
    given = [t.detach() for t in operands(torch.bfloat16)]
    given[index].requires_grad_()
    (actual,) = torch.autograd.grad(linear(*given).sum(), [given[index]])
    exact = [t.detach().double() for t in given]
    exact[index].requires_grad_()
    (expected,) = torch.autograd.grad(F.linear(*exact).sum(), [exact[index]])
    assert (actual.double() - expected).norm() < 4e-3 * expected.norm()


def test_results_are_rounded_once():
    """The result is the rounded exact sum, except where that is close to a tie."""
    given = [t.detach() for t in operands(torch.bfloat16)]
    expected = F.linear(*(t.double() for t in given)).bfloat16()
    assert (linear(*given) == expected).float().mean() > 0.99


def test_autocast_casts_to_its_dtype():
    x, weight, bias = (t.detach() for t in operands(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))


def test_autocast_leaves_float64_alone():
    given = [t.detach().double() for t in operands(torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(*given), F.linear(*given))


def test_mixed_dtypes_are_rejected():
    x, weight, bias = (t.detach() for t in operands(torch.bfloat16))
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x.float(), weight, bias)


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_few_tokens_run_as_torch_code(tokens):
    given = [t.detach() for t in operands(torch.bfloat16, tokens)]
    assert torch.equal(linear(*given), F.linear(*given))


def test_strided_operands():
    x, weight, bias = (t.detach() for t in operands(torch.bfloat16))
    wide, tall = torch.full((2, 20, 38), torch.nan).bfloat16(), weight.T.contiguous()
    wide[..., ::2] = x
    assert torch.equal(linear(wide[..., ::2], tall.T, bias), linear(x, weight, bias))


def test_wide_dtypes_run_as_torch_code(monkeypatch):
    monkeypatch.undo()
    assert eager.is_native(torch.float32)
    assert eager.is_native(torch.float64)
    given = [t.detach() for t in operands(torch.float32)]
    assert torch.equal(linear(*given), F.linear(*given))
