"""FP8 rounding to the bit, and the FP8 linear layer, against independent formulas."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from hybridize.kernels import fp8_linear, fp8_quantize
from hybridize.kernels.eager import fp8 as eager
from hybridize.kernels.reference import fp8 as reference

FORMATS = {torch.float8_e4m3fn: (3, -6, 448.0), torch.float8_e5m2: (2, -14, 57344.0)}


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return the nearest FP8 number, ties to even, computed with Python floats."""
    mantissa, least, largest = FORMATS[dtype]
    if value == 0 or math.isnan(value):
        return value
    exponent = max(math.frexp(abs(value))[1] - 1, least)
    unit = 2.0 ** (exponent - mantissa)
    nearest = round(abs(value) / unit) * unit  # Python rounds ties to even
    return math.copysign(min(nearest, largest), value)


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_fp8_numbers_and_midpoints_round_correctly(dtype):
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    numbers = numbers[numbers.isfinite()].unique()
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([numbers, middles, middles * (1 + 1e-7), middles * (1 - 1e-7)]).float()
    near = torch.cat([near, torch.tensor([500.0, -1e30, 6e4, 7e4, 1e-30, -0.0])])
    values, scale = fp8_quantize(near, "tensor", scale=torch.ones(1), dtype=dtype)
    expected = torch.tensor([rounded(v, dtype) for v in near.tolist()])
    assert torch.equal(values.float(), expected)
    assert torch.equal(values.float().signbit(), expected.signbit())
    assert torch.equal(scale, torch.ones(1))


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(2**-10, 2**10, width=32))
def test_any_number_and_scale_round_correctly(value, scale):
    x, s = torch.tensor([value]), torch.tensor([scale])
    got = fp8_quantize(x, "tensor", scale=s)[0].float()
    assert got.item() == rounded((x / s).item(), torch.float8_e4m3fn)


@pytest.mark.parametrize("shape", [(1, 1), (3, 128), (128, 129), (200, 300)])
@pytest.mark.parametrize("granularity", ["tensor", "row", "group", "block"])
def test_scales_are_computed_per_granularity(shape, granularity):
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]
    values, scale = fp8_quantize(x, granularity)
    height, width = {
        "tensor": shape,
        "row": (1, shape[1]),
        "group": (1, 128),
        "block": (128, 128),
    }[granularity]
    table = scale.reshape(-(-shape[0] // height), -(-shape[1] // width))
    for i in range(shape[0]):
        for j in range(0, shape[1], 37):
            rows = slice(i // height * height, (i // height + 1) * height)
            columns = slice(j // width * width, (j // width + 1) * width)
            expected = x[rows, columns].abs().max() / 448
            assert table[i // height, j // width] == expected
            assert values[i, j].float() == rounded((x[i, j] / expected).item(), torch.float8_e4m3fn)


def test_zeros_and_extremes():
    x = torch.tensor([[0.0] * 4, [3.0] * 4, [448, -448, 1, 0], [1e-44, 0, 0, 0], [3e38, 1, 0, 0]])
    values, scale = fp8_quantize(x, "row")
    assert scale.isfinite().all()
    assert not values.float().isnan().any()
    assert scale[0] == 1
    assert torch.equal(values[0].float(), torch.zeros(4))
    assert torch.equal(values[1].float() * scale[1], torch.full((4,), 448.0) * scale[1])
    assert values[2].float().tolist() == [448, -448, 1, 0]
    assert values[4, 0].float() == 448


def test_nan_stays_nan():
    assert fp8_quantize(torch.tensor([[1.0, torch.nan]]), "row")[0].float().isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("weights", "activations", "static"),
    [("row", "row", False), ("tensor", "tensor", True), ("tensor", "tensor", False),
     ("block", "group", False), ("tensor", "row", False), ("row", "tensor", True)],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1, 256), (2, 7, 128), (5, 130)])
def test_linear_equals_the_product_of_dequantized_operands(
    dtype, weights, activations, static, shape
):
    x = torch.randn(shape).to(dtype)
    values, scale = fp8_quantize(torch.randn(37, shape[-1]), weights)
    bias = torch.randn(37).to(dtype)
    given_scale = torch.tensor([0.004]) if static else None
    quantized, input_scale = fp8_quantize(x, activations, scale=given_scale)
    tiles = [torch.arange(n) // 128 for n in values.shape]
    per_weight = scale[tiles[0]][:, tiles[1]] if weights == "block" else scale
    per_input = input_scale[..., tiles[1]] if activations == "group" else input_scale
    expected = (quantized.double() * per_input) @ (values.double() * per_weight).T + bias.double()
    for linear in (fp8_linear, eager.fp8_linear, reference.fp8_linear):
        got = linear(x, values, scale, bias, activations=activations, input_scale=given_scale)
        assert got.dtype == dtype
        # float32 sums of at most 256 terms; bfloat16 rounds the result, and the sum with the bias
        bound = 2e-6 if dtype == torch.float32 else 1e-2
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert error < bound


def test_the_cpu_runs_the_fp8_product(monkeypatch):
    calls = []
    product = torch._scaled_mm

    def counted(*args, **kwargs):
        calls.append(args[0].dtype)
        return product(*args, **kwargs)

    monkeypatch.setattr(torch, "_scaled_mm", counted)
    weight, scale = fp8_quantize(torch.randn(8, 32), "row")
    fp8_linear(torch.randn(3, 32), weight, scale, activations="row")
    assert calls == [torch.float8_e4m3fn]
