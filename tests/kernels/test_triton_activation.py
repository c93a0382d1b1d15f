"""The Triton kernels of the activations against the reference in float64."""

import pytest
import torch
from triton_testing import DEVICE, DTYPES, draw, error, exact, nan_filled_memory  # noqa: F401

from hybridize.kernels.reference import activation as reference
from hybridize.kernels.triton import activation

BOUNDS = dict(zip(DTYPES, (1e-14, 2e-7, 6e-3, 1e-3), strict=True))
OPERANDS = {"swiglu": 2, "squared_relu": 1}


def check(function, leaves, dtype):
    found = []
    for module, operands in ((activation, leaves), (reference, exact(leaves))):
        y = getattr(module, function)(*operands)
        dy = draw(*y.shape, seed=3).to(y.dtype)
        found.append([y, *torch.autograd.grad(y, operands, dy)])
    for actual, expected in zip(*found, strict=True):
        assert actual.numel() == 0 or error(actual, expected) < BOUNDS[dtype]
    assert {actual.dtype for actual in found[0]} == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 1), (2, 1025), (0, 7)])
@pytest.mark.parametrize("function", OPERANDS)
def test_values_and_gradients(function, shape, dtype):
    leaves = [draw(*shape, seed=seed, dtype=dtype) for seed in range(OPERANDS[function])]
    check(function, [leaf.requires_grad_() for leaf in leaves], dtype)


@pytest.mark.parametrize("function", OPERANDS)
def test_gradients_match_finite_differences(function):
    leaves = [draw(2, 5, seed=seed).requires_grad_() for seed in range(OPERANDS[function])]
    assert torch.autograd.gradcheck(getattr(activation, function), leaves)


@pytest.mark.parametrize("function", OPERANDS)
def test_operands_may_have_any_strides(function):
    """Transposed, every other column, a slice of columns, and three dimensions."""
    for layout in (lambda t: t.T, lambda t: t[:, ::2], lambda t: t[:, 3:9], lambda t: t[:, None]):
        given = [layout(draw(14, 12, seed=seed)) for seed in range(OPERANDS[function])]
        got = getattr(activation, function)(*given)
        assert error(got, getattr(reference, function)(*given)) < 1e-14


def test_infinity_and_nan_match_the_reference():
    x = torch.tensor([[-1e4, -0.0, 0.0, 1e4, torch.inf, torch.nan]], device=DEVICE)
    for got, expected in (
        (activation.squared_relu(x), reference.squared_relu(x)),
        (activation.swiglu(x[:, :5], x[:, :5]), reference.swiglu(x[:, :5], x[:, :5])),
    ):
        torch.testing.assert_close(got, expected, equal_nan=True)
