"""The MLP without a gate against plain float64 arithmetic."""

import pytest
import torch

from hybridize.kernels import squared_relu_mlp
from hybridize.kernels.eager import mlp

SHAPES = {"x": (3, 5, 6), "up": (11, 6), "down": (4, 11), "up_bias": (11,), "down_bias": (4,)}


def operands(dtype=torch.float64, biased=True):
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }
    return {k: v.requires_grad_() for k, v in drawn.items() if biased or "bias" not in k}


def formula(x, up, down, up_bias=0.0, down_bias=0.0):
    inner = x @ up.T + up_bias
    return torch.where(inner > 0, inner * inner, 0.0) @ down.T + down_bias


@pytest.fixture(params=["reference", "eager"], autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", request.param)
    monkeypatch.setattr(mlp, "_TILE_BYTES", 1)
    monkeypatch.setattr(mlp, "_MIN_TOKENS", 4)  # tiles of 4 of the 15 tokens
    return request.param


def with_gradients(function, given):
    y = function(**given)
    dy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, list(given.values()), dy)]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)],
)
def test_values_and_gradients(dtype, bound, biased):
    given = operands(dtype, biased)
    exact = {k: v.detach().double().requires_grad_() for k, v in given.items()}
    for actual, expected in zip(
        with_gradients(squared_relu_mlp, given), with_gradients(formula, exact), strict=True
    ):
        assert actual.dtype == dtype
        assert (actual.double() - expected).norm() < bound * expected.norm()


def test_gradients_match_finite_differences():
    assert torch.autograd.gradcheck(squared_relu_mlp, tuple(operands().values()))


@pytest.mark.parametrize("name", SHAPES)
def test_a_single_gradient(name):
    given = {k: v.requires_grad_(k == name) for k, v in operands().items()}
    squared_relu_mlp(**given).sum().backward()
    got = given[name].grad.clone()
    given[name].grad = None
    formula(**given).sum().backward()
    torch.testing.assert_close(got, given[name].grad)


def test_operands_may_have_any_strides():
    given = operands(biased=False)
    turned = {k: v.detach().mT.contiguous().mT for k, v in given.items()}
    torch.testing.assert_close(squared_relu_mlp(**turned), formula(**given))
    assert squared_relu_mlp(turned["x"][:0], turned["up"], turned["down"]).shape == (0, 5, 4)


def test_autocast_casts_to_its_dtype():
    given = operands(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = squared_relu_mlp(**given)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert given["up"].grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager"], indirect=True)  # the reference saves them
@pytest.mark.usefixtures("backend")
def test_no_wide_activation_is_saved_for_backward():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        squared_relu_mlp(**operands())
    assert sorted(kept) == sorted(torch.Size(shape) for shape in SHAPES.values())
