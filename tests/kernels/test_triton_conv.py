"""The Triton kernels of the causal convolution against the reference in float64."""

import pytest
import torch
from triton_testing import DEVICE, DTYPES, draw, error, exact, nan_filled_memory  # noqa: F401

from hybridize.kernels.reference import conv as reference
from hybridize.kernels.triton import conv

BACKWARD_BLOCKS = conv._BACKWARD_BLOCKS
BOUNDS = dict(zip(DTYPES, (1e-12, 1e-6, 5e-3, 6e-4), strict=True))


def check(length, width, *, dtype=torch.float64, options=("bias", "conv_state"), seq_idx=None):
    """Compare outputs, conv_state and all gradients."""
    inputs = {
        "x": draw(2, length, 5, dtype=dtype),
        "weight": draw(5, width, seed=1, dtype=dtype),
        "bias": draw(5, seed=2, dtype=dtype),
        "conv_state": draw(2, width - 1, 5, seed=3, dtype=dtype),
    }
    inputs = {k: v for k, v in inputs.items() if k in ("x", "weight", *options)}
    found = []
    for module, leaves in ((conv, {k: v.requires_grad_() for k, v in inputs.items()}),
                           (reference, exact(inputs))):  # fmt: skip
        y, last = module.causal_conv1d(**leaves, seq_idx=seq_idx)
        gradients = torch.autograd.grad(
            [y, last],
            list(leaves.values()),
            [draw(*y.shape, seed=4).to(y.dtype), draw(*last.shape, seed=5).to(y.dtype)],
            materialize_grads=True,
        )
        found.append([y, last, *gradients])
    for actual, expected in zip(*found, strict=True):
        assert error(actual, expected) < BOUNDS[dtype] or actual.numel() == 0
    assert {actual.dtype for actual in found[0]} == {dtype}


@pytest.fixture(autouse=True)
def short_programs(monkeypatch):
    """Give the backward pass two blocks per program, so that 35 tokens need two programs."""
    monkeypatch.setattr(conv, "_BACKWARD_BLOCKS", 2)


@pytest.mark.parametrize("length", [1, 3, 4, 35])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_convolution_continues_from_conv_state(length, width):
    check(length, width)


def test_programs_of_the_usual_length(monkeypatch):
    monkeypatch.setattr(conv, "_BACKWARD_BLOCKS", BACKWARD_BLOCKS)
    check(131, 2)


@pytest.mark.parametrize("options", [(), ("bias",), ("conv_state",)])
def test_missing_optional_inputs_equal_zero_inputs(options):
    check(2, 4, options=options)
    check(19, 4, options=options)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_narrow_dtypes_stay_within_error_bounds(dtype):
    check(19, 4, dtype=dtype)


@pytest.mark.parametrize("options", [("bias",), ("bias", "conv_state")])
@pytest.mark.parametrize("length", [2, 3, 12])
def test_packed_sequences_are_convolved_separately(length, options):
    seq_idx = torch.tensor(
        [[0, 0, 1, 0, 0, 0, 0, 0, 3, 3, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]]
    )
    check(length, 4, options=options, seq_idx=seq_idx[:, :length].to(DEVICE))


def test_slices_of_a_wider_tensor():
    wide, weight = draw(2, 9, 15), draw(5, 4, seed=1)
    for x in (wide[..., 3:8], wide[..., ::3]):
        assert (
            error(conv.causal_conv1d(x, weight)[0], reference.causal_conv1d(x, weight)[0]) < 1e-12
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_steps_equal_the_whole_sequence(dtype, width):
    x, weight, bias = draw(2, 6, 5, dtype=dtype), draw(5, width, dtype=dtype), draw(5, dtype=dtype)
    expected, last = reference.causal_conv1d(x.double(), weight.double(), bias.double())
    conv_state = torch.zeros(2, width - 1, 5, dtype=dtype, device=DEVICE)
    for t in range(6):
        y = conv.causal_conv1d_step(x[:, t], conv_state, weight, bias)
        assert error(y, expected[:, t]) < BOUNDS[dtype]
    assert torch.equal(conv_state, last.to(dtype))
