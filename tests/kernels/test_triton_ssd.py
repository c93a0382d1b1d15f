"""The Triton kernels of the SSD scan against the recurrence in float64."""

import pytest
import torch
from triton_testing import DEVICE, DTYPES, draw, error, exact, nan_filled_memory  # noqa: F401

from hybridize.kernels.reference.ssd_scan import ssd_scan as recurrence
from hybridize.kernels.reference.ssd_step import ssd_step as reference_step
from hybridize.kernels.triton.ssd_scan import ssd_scan
from hybridize.kernels.triton.ssd_step import ssd_step

CHUNK = 16
BOUNDS = dict(zip(DTYPES, (1e-11, 3e-5, 4e-2, 5e-3), strict=True))


def operands(batch, length, heads, groups, dtype=torch.float64, head_dim=5, d_state=7):
    return {
        "x": draw(batch, length, heads, head_dim, seed=length, dtype=dtype),
        "dt": draw(batch, length, heads, seed=1, dtype=dtype),
        "A": -draw(heads, seed=2).exp().to(dtype),
        "B": draw(batch, length, groups, d_state, seed=3, dtype=dtype),
        "C": draw(batch, length, groups, d_state, seed=4, dtype=dtype),
        "D": draw(heads, seed=5, dtype=dtype),
        "dt_bias": draw(heads, seed=6, dtype=dtype),
        "initial_state": draw(batch, heads, head_dim, d_state, seed=7, dtype=dtype),
    }


def with_gradients(scan, leaves, **options):
    y, state = scan(**leaves, **options)
    dy, dstate = draw(*y.shape, seed=8).to(y.dtype), draw(*state.shape, seed=9).to(state.dtype)
    wanted = [leaf for leaf in leaves.values() if leaf is not None]
    return y, state, *torch.autograd.grad([y, state], wanted, [dy, dstate])


def check(inputs, bound, **options):
    """Compare outputs, states and all gradients."""
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    got = with_gradients(ssd_scan, leaves, chunk_size=CHUNK, **options)
    expected_results = with_gradients(recurrence, exact(inputs), **options)
    names = ("y", "state", *inputs)
    for name, actual, expected in zip(names, got, expected_results, strict=True):
        assert error(actual, expected) < bound, name
    assert [g.dtype for g in got[2:]] == [leaf.dtype for leaf in inputs.values()]
    assert got[0].dtype == inputs["x"].dtype


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "length"),
    [
        *((1, 1, 1, length) for length in (1, CHUNK - 1, CHUNK, CHUNK + 1, 37)),
        *((1, 3, 1, length) for length in (CHUNK, 37)),
        *((2, 4, 2, length) for length in (1, CHUNK + 1, 37)),
    ],
)
def test_scan_equals_the_recurrence(batch, heads, groups, length):
    check(operands(batch, length, heads, groups), 1e-11)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_narrow_dtypes_stay_within_error_bounds(dtype):
    check(operands(1, 37, 4, 2, dtype=dtype), BOUNDS[dtype])


def test_packed_sequences_are_independent():
    seq_idx = torch.zeros(2, 37, dtype=torch.long, device=DEVICE)
    for row, cuts in enumerate(([3, 16, 17, 35], [31])):
        for cut in cuts:
            seq_idx[row, cut:] = 1 - seq_idx[row, cut:]  # 0 and 1 occur several times
    check(operands(2, 37, 4, 2), 1e-11, seq_idx=seq_idx)


def test_dt_is_clamped_to_its_limits():
    check(operands(1, 21, 4, 2), 1e-11, dt_limit=(0.3, 0.9))


def test_missing_optional_inputs_equal_zero_inputs():
    inputs = operands(1, 21, 2, 1)
    without = {k: v for k, v in inputs.items() if k not in ("D", "dt_bias", "initial_state")}
    check(without, 1e-11)


def test_any_chunk_size_with_strided_operands():
    inputs = operands(1, 21, 2, 1)
    reference = recurrence(**inputs)
    strided = {k: v.repeat_interleave(2, -1)[..., ::2] for k, v in inputs.items()}
    for size in (None, 1, 5, 32):
        for actual, expected in zip(ssd_scan(**strided, chunk_size=size), reference, strict=True):
            assert error(actual, expected) < 1e-12


def test_slices_of_a_wider_tensor():
    inputs = operands(2, 19, 2, 1)
    wide = torch.cat([inputs["x"].flatten(2), inputs["B"].flatten(2), inputs["dt"]], -1)
    split = wide.split([10, 7, 2], -1)
    parts = {"x": split[0].unflatten(2, (2, 5)), "B": split[1].unflatten(2, (1, 7)), "dt": split[2]}
    for actual, expected in zip(ssd_scan(**(inputs | parts)), recurrence(**inputs), strict=True):
        assert error(actual, expected) < 1e-12


def test_sequences_of_any_stride():
    """A slice of a longer tensor, an expanded batch, and sequences a fractional token apart."""
    inputs = operands(2, 19, 2, 1)
    longer, other = draw(2, 25, 2, 5), draw(2 * 19 * 10 + 1)
    for x in (longer[:, :19], longer[:1, :19].expand(2, -1, -1, -1), longer[:, 6:7],
              other.as_strided((2, 19, 2, 5), (19 * 10 + 1, 10, 5, 1))):  # fmt: skip
        given = {k: v[:, : x.shape[1]] if k in ("dt", "B", "C") else v for k, v in inputs.items()}
        given |= {"x": x}
        for actual, expected in zip(ssd_scan(**given), recurrence(**given), strict=True):
            assert error(actual, expected) < 1e-12


def test_dt_of_minus_infinity_skips_the_token():
    inputs = operands(1, 30, 2, 1)
    inputs["dt"][:, 10:20] = -torch.inf
    check(inputs, 1e-11)


def test_strong_and_weak_decay_stay_exact():
    inputs = operands(1, 40, 2, 1, dtype=torch.float32)
    inputs["A"] = torch.tensor([-200.0, -1e-4], device=DEVICE)
    check(inputs, 1e-4)


def test_two_halves_equal_the_whole():
    inputs = operands(2, 50, 4, 2)
    whole, last = ssd_scan(**inputs, chunk_size=CHUNK)
    per_token = ("x", "dt", "B", "C")
    first = {k: v[:, :23] if k in per_token else v for k, v in inputs.items()}
    second = {k: v[:, 23:] if k in per_token else v for k, v in inputs.items()}
    y, state = ssd_scan(**first, chunk_size=CHUNK)
    z, state = ssd_scan(**(second | {"initial_state": state}), chunk_size=CHUNK)
    assert error(torch.cat([y, z], 1), whole) < 1e-12
    assert error(state, last) < 1e-12


def test_states_of_usual_size():
    """Full blocks in float32; a state this large runs as eager code in float64."""
    wide = {"head_dim": 64, "d_state": 128}
    check(operands(1, 40, 2, 1, dtype=torch.float32, **wide), BOUNDS[torch.float32])
    check(operands(1, 20, 2, 1, **wide), 1e-11)


def test_gradients_match_finite_differences():
    inputs = {k: v.requires_grad_() for k, v in operands(1, 3, 1, 1, head_dim=1, d_state=2).items()}

    def scan(*values):
        return ssd_scan(**dict(zip(inputs, values, strict=True)), chunk_size=2)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_equals_the_scan_of_one_token(dtype):
    inputs = operands(2, 1, 6, 3, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    state = inputs.pop("initial_state").to(wide).mT.contiguous().mT  # not contiguous
    token = {k: v[:, 0] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}
    expected_state = state.double().clone()
    expected = reference_step(
        expected_state, **{k: v.double() for k, v in token.items()}, dt_limit=(0.2, 1.5)
    )
    got = ssd_step(state, **token, dt_limit=(0.2, 1.5))
    assert got.dtype == dtype
    assert error(got, expected) < BOUNDS[dtype]
    assert error(state, expected_state) < BOUNDS[wide]
