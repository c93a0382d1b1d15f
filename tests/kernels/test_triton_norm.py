"""The Triton kernels of the norms against the reference in float64."""

import pytest
import torch
from triton_testing import DTYPES, draw, error, exact, nan_filled_memory  # noqa: F401

from hybridize.kernels.reference import norm as reference
from hybridize.kernels.triton import norm

BOUNDS = dict(zip(DTYPES, (1e-12, 1e-6, 1e-2, 1e-3), strict=True))


def check(leaves, function, options, dtype):
    found = []
    for module, operands in ((norm, leaves), (reference, exact(leaves))):
        y = getattr(module, function)(*operands, 1e-3, **options)
        dy = draw(*y.shape, seed=3).to(y.dtype)
        found.append([y, *torch.autograd.grad(y, operands, dy)])
    for actual, expected in zip(*found, strict=True):
        assert error(actual, expected) < BOUNDS[dtype]
    assert {actual.dtype for actual in found[0]} == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 16, 24, 700])
def test_rms_norm(dtype, width):
    leaves = [draw(3, 5, width, dtype=dtype), draw(width, seed=1, dtype=dtype)]
    check([leaf.requires_grad_() for leaf in leaves], "rms_norm", {}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [4, 12, 24])
def test_gated_rms_norm(dtype, norm_before_gate, group_size):
    leaves = [draw(3, 43, 24, seed=seed, dtype=dtype) for seed in (0, 1)]
    leaves.append(draw(24, seed=2, dtype=dtype))
    options = {"group_size": group_size, "norm_before_gate": norm_before_gate}
    check([leaf.requires_grad_() for leaf in leaves], "gated_rms_norm", options, dtype)


def test_operands_may_have_any_strides():
    """Transposed, every other column, and empty."""
    x, gate, weight = draw(16, 70).T, draw(70, 32, seed=1)[:, ::2], draw(16, seed=2)
    expected = reference.gated_rms_norm(x, gate, weight, 1e-5, group_size=8)
    assert error(norm.gated_rms_norm(x, gate, weight, 1e-5, group_size=8), expected) < 1e-12
    assert norm.rms_norm(x[:0], weight, 1e-5).shape == (0, 16)


def test_a_wider_weight_dtype_widens_the_output():
    x, weight = draw(4, 16, dtype=torch.bfloat16), draw(16, seed=1, dtype=torch.float32)
    assert norm.rms_norm(x, weight, 1e-5).dtype == torch.float32
