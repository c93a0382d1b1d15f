"""The Triton kernels of a Mamba-2 decoding step against the reference in float64."""

import pytest
import torch
from triton_testing import DTYPES, draw, error, nan_filled_memory  # noqa: F401

from hybridize.kernels.reference import mamba2_step as reference
from hybridize.kernels.triton import mamba2_step as triton

BOUNDS = dict(zip(DTYPES, (1e-12, 2e-6, 2e-2, 2e-3), strict=True))


def check(dtype, *, heads=4, head_dim=5, d_state=7, groups=2, width=4, norms=1, biased=True):
    """Decode two tokens, and compare outputs, conv_state and state."""
    inner = heads * head_dim
    channels = inner + 2 * groups * d_state
    tokens = draw(2, 2, inner + channels + heads, dtype=dtype)
    parameters = [
        draw(*shape, seed=seed, dtype=dtype)
        for seed, shape in enumerate(
            [(channels, width), (channels,), (heads,), (heads,), (heads,), (inner,)], 1
        )
    ]
    if not biased:
        parameters[1] = None
    wide = torch.promote_types(dtype, torch.float32)
    conv_state = draw(2, channels, width - 1, seed=8, dtype=dtype).mT  # as in the cache
    state = draw(2, heads, head_dim, d_state, seed=9, dtype=wide).mT.contiguous().mT
    exact_states = [conv_state.double().clone(), state.double().clone()]
    exact = [None if p is None else p.double() for p in parameters]
    options = {"group_size": inner // norms, "dt_limit": (0.2, 1.5)}
    for t in range(2):
        got = triton.mamba2_step(tokens[:, t], conv_state, state, *parameters, 1e-5, **options)
        expected = reference.mamba2_step(
            tokens[:, t].double(), *exact_states, *exact, 1e-5, **options
        )
        assert got.dtype == dtype
        assert error(got, expected) < BOUNDS[dtype]
    assert error(state, exact_states[1]) < BOUNDS[dtype]
    assert torch.equal(conv_state, exact_states[0].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_successive_tokens(dtype):
    check(dtype)


@pytest.mark.parametrize(
    "sizes",
    [{"groups": 1}, {"groups": 4}, {"norms": 2}, {"norms": 4, "groups": 1}, {"biased": False},
     {"width": 1}, {"width": 2}, {"head_dim": 40, "d_state": 16, "heads": 2}],
)  # fmt: skip
def test_mixers_of_any_shape(sizes):
    check(torch.float64, **sizes)


def test_gradients_run_as_reference_code():
    shapes = [(1, 2 + 4 + 1), (1, 3, 4), (1, 1, 2, 1), (4, 4), (4,), (1,), (1,), (1,), (2,)]
    operands = [draw(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    operands[0].requires_grad_()
    y = triton.mamba2_step(*operands, 1e-5, group_size=2)
    (gradient,) = torch.autograd.grad(y.sum(), operands[0])
    assert gradient.any()
