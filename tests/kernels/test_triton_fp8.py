"""The Triton kernels of FP8 against torch's rounding, to the bit, and against float64 products."""

import pytest
import torch
from triton_testing import DEVICE, draw, error, nan_filled_memory  # noqa: F401

from hybridize.kernels.eager import fp8 as eager
from hybridize.kernels.reference import fp8 as reference
from hybridize.kernels.triton import fp8

FORMATS = [torch.float8_e4m3fn, torch.float8_e5m2]
GRANULARITIES = ["tensor", "row", "group", "block"]


@pytest.fixture(autouse=True, params=[True, False] if DEVICE == "cuda" else [False])
def conversion(request, monkeypatch):
    """Test the GPU's own conversion, and the one for devices without any."""
    if not request.param:
        monkeypatch.setattr(fp8, "_has_fp8_conversion", lambda device: False)


def same_numbers(got, expected):
    """Compare bits, except for NaN, which has many encodings."""
    nan = expected.float().isnan()
    assert torch.equal(got.float().isnan(), nan)
    assert torch.equal(got.view(torch.uint8)[~nan], expected.view(torch.uint8)[~nan])


def check(x, granularity, **options):
    values, scale = fp8.fp8_quantize(x, granularity, **options)
    expected, expected_scale = reference.fp8_quantize(x, granularity, **options)
    assert values.dtype == expected.dtype
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    same_numbers(values, expected)


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_fp8_numbers_and_midpoints_round_correctly(dtype):
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    numbers = numbers[numbers.isfinite()].unique()
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([numbers, middles, middles * (1 + 1e-6), middles * (1 - 1e-6)])
    ends = torch.tensor([500.0, -1e30, 6e4, 7e4, 1e-30, -0.0, 1e-44, torch.inf, torch.nan])
    near = torch.cat([near, ends]).to(DEVICE)
    check(near, "tensor", scale=torch.ones(1, device=DEVICE), dtype=dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 128), (131, 129), (2, 5, 200), (2, 130, 260)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_computed_and_given_scales(granularity, shape, dtype):
    x = draw(*shape, dtype=torch.float32) * torch.logspace(-3, 3, shape[-2], device=DEVICE)[:, None]
    check(x, granularity, dtype=dtype)
    given = reference.fp8_scale(x, granularity, dtype=dtype) * 0.7  # some numbers are clamped
    check(x, granularity, scale=given, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_operands_of_other_dtypes(granularity, dtype):
    check(draw(70, 140, dtype=dtype), granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zeros_subnormals_infinity_and_nan(granularity):
    x = torch.zeros(5, 256, device=DEVICE)
    check(x, granularity)
    x[1, 3], x[2, 3] = 1e-44, 3e38
    check(x, granularity)
    x[3, 3], x[4, 3] = torch.inf, torch.nan
    check(x, granularity)


def test_rows_wider_than_one_program(monkeypatch):
    monkeypatch.setattr(fp8, "_MAX_COLUMNS", 64)
    monkeypatch.setattr(fp8, "_BLOCK", 32)
    check(draw(3, 100, dtype=torch.float32), "row")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_operands_may_have_any_strides(granularity):
    wide = draw(140, 300, dtype=torch.float32)
    for x in (wide.T, wide[:, ::2], wide[:, 7:200], wide[:0]):
        if x.numel() or granularity not in ("tensor", "block"):  # an empty tensor has no maximum
            check(x, granularity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 256), (2, 17, 384), (5, 130)])
@pytest.mark.parametrize("biased", [True, False])
def test_block_scaled_product(dtype, shape, biased):
    x = draw(*shape, dtype=dtype)
    weight, scale = reference.fp8_quantize(
        draw(150, shape[-1], seed=1, dtype=torch.float32), "block"
    )
    bias = draw(150, seed=2, dtype=dtype) if biased else None
    got = fp8.fp8_linear(x, weight, scale, bias, activations="group")
    values, input_scale = reference.fp8_quantize(x, "group")
    expected = reference.fp8_dequantize(values, input_scale, torch.float64)
    expected = expected @ reference.fp8_dequantize(weight, scale, torch.float64).T
    expected = expected if bias is None else expected + bias.double()
    assert got.dtype == dtype
    # A tensor core keeps 14 bits of the sums of one tile.
    exact = 1e-6 if DEVICE == "cpu" else 1e-3
    assert error(got, expected) < (exact if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize(
    ("weights", "activations", "static"),
    [("row", "row", False), ("tensor", "tensor", True), ("tensor", "tensor", False),
     ("block", "row", False), ("row", "group", False)],
)  # fmt: skip
def test_other_granularities_run_torch_products(weights, activations, static):
    x = draw(3, 5, 256, dtype=torch.bfloat16)
    weight, scale = reference.fp8_quantize(draw(144, 256, seed=1, dtype=torch.float32), weights)
    given = torch.full((1,), 0.01, device=DEVICE) if static else None
    bias = draw(144, seed=2, dtype=torch.bfloat16)
    expected = reference.fp8_linear(
        x.double(), weight, scale, bias, activations=activations, input_scale=given
    )
    for module in (fp8, eager):
        got = module.fp8_linear(x, weight, scale, bias, activations=activations, input_scale=given)
        assert error(got, expected) < 5e-3
