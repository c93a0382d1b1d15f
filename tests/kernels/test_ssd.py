"""The SSD scan against its recurrence in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.kernels import ssd_scan, ssd_step
from hybridize.kernels.eager import ssd_scan as eager

CHUNK = 16


def operands(
    batch: int,
    length: int,
    heads: int,
    groups: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
    head_dim: int = 5,
    d_state: int = 7,
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": draw(batch, length, heads, head_dim),
        "dt": draw(batch, length, heads),
        "A": -draw(heads).exp(),
        "B": draw(batch, length, groups, d_state),
        "C": draw(batch, length, groups, d_state),
        "D": draw(heads),
        "dt_bias": draw(heads),
        "initial_state": draw(batch, heads, head_dim, d_state),
    }


def recurrence(x, dt, A, B, C, D, dt_bias, initial_state, dt_limit=(0.0, math.inf), seq_idx=None):
    """Compute y and the last state, one token and one head after the other."""
    batch, length, heads, _head_dim = x.shape
    group = heads // B.shape[2]
    y = torch.full(x.shape, math.nan, dtype=torch.float64)
    state = initial_state.double().clone()
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                if seq_idx is not None and t and seq_idx[b, t] != seq_idx[b, t - 1]:
                    state[b, h] = 0
                delta = math.log1p(math.exp(float(dt[b, t, h]) + float(dt_bias[h])))
                delta = min(max(delta, dt_limit[0]), dt_limit[1])
                outer = torch.outer(x[b, t, h].double(), B[b, t, h // group].double())
                state[b, h] = math.exp(delta * float(A[h])) * state[b, h] + delta * outer
                y[b, t, h] = state[b, h] @ C[b, t, h // group].double()
                y[b, t, h] += float(D[h]) * x[b, t, h].double()
    return y, state


@pytest.fixture(params=["reference", "eager"])
def backend(request, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", request.param)
    return request.param


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 37])
@pytest.mark.parametrize(("batch", "heads", "groups"), [(1, 1, 1), (2, 6, 3), (2, 4, 1), (1, 3, 3)])
def test_scan_equals_the_recurrence(backend, length, batch, heads, groups):
    inputs = operands(batch, length, heads, groups, seed=length)
    y, state = ssd_scan(**inputs, chunk_size=CHUNK)
    expected_y, expected_state = recurrence(**inputs)
    torch.testing.assert_close(y, expected_y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, expected_state, rtol=1e-10, atol=1e-10)


def test_dt_is_clamped_to_its_limits(backend):
    inputs = operands(2, 21, 4, 2, seed=3)
    limit = (0.3, 0.9)
    y, _ = ssd_scan(**inputs, dt_limit=limit, chunk_size=CHUNK)
    torch.testing.assert_close(y, recurrence(**inputs, dt_limit=limit)[0], rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, 39), max_size=6))
@settings(max_examples=25, deadline=None)
def test_packed_sequences_are_independent(seed, cuts):
    inputs = operands(1, 40, 2, 1, seed=seed)
    seq_idx = torch.zeros(1, 40, dtype=torch.long)
    for cut in cuts:
        seq_idx[:, cut:] = 1 - seq_idx[:, cut:]  # 0 and 1 occur several times
    y, state = ssd_scan(**inputs, seq_idx=seq_idx, chunk_size=CHUNK)
    expected_y, expected_state = recurrence(**inputs, seq_idx=seq_idx)
    torch.testing.assert_close(y, expected_y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, expected_state, rtol=1e-9, atol=1e-9)


def test_two_halves_equal_the_whole(backend):
    inputs = operands(2, 50, 4, 2, seed=5)
    whole, last = ssd_scan(**inputs, chunk_size=CHUNK)
    per_token = ("x", "dt", "B", "C")
    first = {k: v[:, :23] if k in per_token else v for k, v in inputs.items()}
    y, state = ssd_scan(**first, chunk_size=CHUNK)
    second = {k: v[:, 23:] if k in per_token else v for k, v in inputs.items()}
    z, state = ssd_scan(**(second | {"initial_state": state}), chunk_size=CHUNK)
    torch.testing.assert_close(torch.cat([y, z], 1), whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


def test_steps_equal_the_whole_sequence():
    inputs = operands(2, 9, 6, 3, seed=6)
    expected, last = recurrence(**inputs)
    state = inputs.pop("initial_state").clone()
    fixed = {k: inputs[k] for k in ("A", "D", "dt_bias")}
    for t in range(9):
        token = {k: inputs[k][:, t] for k in ("x", "dt", "B", "C")}
        y = ssd_step(state, **token, **fixed)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


def test_dt_of_minus_infinity_skips_the_token(backend):
    inputs = operands(1, 30, 2, 1, seed=7)
    inputs["dt"][:, 10:20] = -math.inf
    y, state = ssd_scan(**inputs, chunk_size=CHUNK)
    keep = [*range(10), *range(20, 30)]
    per_token = ("x", "dt", "B", "C")
    without = {k: v[:, keep] if k in per_token else v for k, v in inputs.items()}
    expected, last = ssd_scan(**without, chunk_size=CHUNK)
    torch.testing.assert_close(y[:, keep], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


def test_strong_and_weak_decay_stay_exact(backend):
    inputs = operands(1, 64, 2, 1, seed=8, dtype=torch.float32)
    inputs["A"] = torch.tensor([-200.0, -1e-4])
    y, state = ssd_scan(**inputs, chunk_size=CHUNK)
    expected_y, expected_state = recurrence(**inputs)
    torch.testing.assert_close(y.double(), expected_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
def test_narrow_dtypes_stay_within_error_bounds(backend, dtype, bound):
    inputs = operands(2, 70, 4, 2, seed=9, dtype=dtype)
    y, state = ssd_scan(**inputs, chunk_size=CHUNK)
    expected, _ = recurrence(**inputs)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert (y.double() - expected).norm() / expected.norm() < bound


def test_strided_operands_give_the_same_result(backend):
    inputs = operands(2, 20, 4, 2, seed=10)
    strided = {
        k: v.repeat_interleave(2, dim=-1)[..., ::2] if v.ndim > 1 else v for k, v in inputs.items()
    }
    assert not strided["x"].is_contiguous()
    torch.testing.assert_close(ssd_scan(**strided), ssd_scan(**inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("heads", "groups"), [(2, 1), (4, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_match_finite_differences(monkeypatch, heads, groups, packed):
    monkeypatch.setattr(eager, "_TILE", 2 * heads * 4**2)  # tiles of two chunks
    inputs = operands(1, 9, heads, groups, seed=11, head_dim=2, d_state=3)
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    order = list(leaves)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]]) if packed else None

    def scan(*values):
        named = dict(zip(order, values, strict=True))
        return ssd_scan(**named, seq_idx=seq_idx, chunk_size=4)

    assert torch.autograd.gradcheck(scan, tuple(leaves.values()))


def gradients(inputs, seq_idx, dy, dstate):
    """Return the gradients of all inputs."""
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    y, state = ssd_scan(**leaves, seq_idx=seq_idx, dt_limit=(0.1, 1.5))
    torch.autograd.backward([y, state], [dy.to(y.dtype), dstate.to(state.dtype)])
    return {k: v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float64, 1e-11),
        (torch.float32, 5e-5),
        (torch.bfloat16, 5e-2),
        (torch.float16, 6e-3),
    ],
)
def test_gradients_match_the_recurrence(monkeypatch, length, packed, dtype, bound):
    """With several tiles, and the default chunk size."""
    inputs = operands(2, length, 16, 2, seed=length, dtype=dtype)
    seq_idx = torch.arange(length).div(50, rounding_mode="floor").expand(2, -1) if packed else None
    y_shape, state_shape = inputs["x"].shape, inputs["initial_state"].shape
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y_shape, generator=generator, dtype=torch.float64).to(dtype)
    dstate = torch.randn(state_shape, generator=generator)
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "reference")
    expected = gradients({k: v.double() for k, v in inputs.items()}, seq_idx, dy, dstate)
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "eager")
    got = gradients(inputs, seq_idx, dy, dstate)
    for name, gradient in got.items():
        assert gradient.dtype == dtype
        error = (gradient.double() - expected[name]).norm() / expected[name].norm()
        assert error < bound, name


def test_autocast_does_not_change_the_result(backend):
    inputs = operands(1, 40, 2, 1, seed=13, dtype=torch.float32)
    dy, dstate = torch.ones_like(inputs["x"]), torch.ones_like(inputs["initial_state"])
    expected = gradients(inputs, None, dy, dstate)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(inputs, None, dy, dstate)
    torch.testing.assert_close(got, expected)


def test_only_inputs_output_and_states_are_saved_for_backward():
    inputs = operands(1, 4096, 2, 1, seed=12, dtype=torch.float32)
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = ssd_scan(**leaves)
    operands_and_output = sum(t.nbytes for t in leaves.values()) + y.nbytes
    assert sum(kept.values()) < 2 * operands_and_output
