"""FP8 on GPUs: quantization in one launch, and linear layers on FP8 numbers."""

import torch
import triton

from hybridize.kernels.eager import fp8 as eager
from hybridize.kernels.reference import fp8 as reference
from hybridize.kernels.reference.fp8 import TILE
from hybridize.kernels.triton import fp8_kernels as kernels
from hybridize.kernels.triton.launch import INTERPRETED, evenly_spaced, spacing

_MAX_COLUMNS = 16384
"""Most columns that a program loads; the scales of wider rows are computed before the launch."""

_BLOCK = 4096
"""Elements per program, or more if more elements share a scale."""

_BITS = {torch.float8_e4m3fn: (3, 7), torch.float8_e5m2: (2, 15)}
"""Bits of the mantissa, and bias of the exponent."""


def fp8_quantize(
    x: torch.Tensor,
    granularity: str,
    *,
    scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.fp8_quantize`; the reference handles float64."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.fp8_quantize(x, granularity, scale=scale, dtype=dtype)
    if scale is None and (
        granularity == "tensor" or (granularity == "row" and x.shape[-1] > _MAX_COLUMNS)
    ):
        scale = reference.fp8_scale(x, granularity, dtype=dtype)
    columns = x.shape[-1]
    rows = x.shape[-2] if granularity == "block" else x.numel() // columns
    matrices = x.numel() // (rows * columns)
    height, width = _block_shape(granularity, columns, scale is not None)
    down, across = triton.cdiv(rows, height), triton.cdiv(columns, width)
    # Shape of the scales; their strides over matrices, rows (or blocks of rows), blocks of columns.
    shape, strides = {
        "tensor": ((1,), (0, 0, 0)),
        "row": ((*x.shape[:-1], 1), (0, 1, 0)),
        "group": ((*x.shape[:-1], across), (0, across, 1)),
        "block": ((*x.shape[:-2], down, across), (down * across, across, 1)),
    }[granularity]
    if scale is None:
        scales = x.new_empty(shape, dtype=torch.float32)
    else:
        scales = scale.float().broadcast_to(shape).contiguous()
    values = x.new_empty(x.shape, dtype=dtype)
    flat = evenly_spaced(x.reshape(matrices, rows, columns))
    with torch.cuda.device_of(x):
        kernels.quantize[down, across, matrices](
            flat, scales, values if _has_fp8_conversion(x.device) else values.view(torch.uint8),
            *spacing(flat), rows, columns, *strides,
            LARGEST=torch.finfo(dtype).max, ONE_SCALE=granularity in ("tensor", "block"),
            GIVEN=scale is not None, MANTISSA=_BITS[dtype][0], BIAS=_BITS[dtype][1],
            BR=height, BC=width, num_warps=min(16, max(4, height * width // 1024)),
        )  # fmt: skip
    return values, scales if scale is None else scale


def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Implement `hybridize.kernels.fp8_linear`; run the reference if there is no FP8 product."""
    has_blocks = activations == "group" and weight_scale.shape == _block_grid(weight)
    if has_blocks and x.numel() and (INTERPRETED or _has_fp8_conversion(x.device)):
        values, scale = fp8_quantize(x.flatten(0, -2), activations, scale=input_scale)
        return _block_scaled_matmul(values, scale, weight, weight_scale, bias, x)
    if activations == "group" or not eager.has_fp8_product(x, weight, weight_scale):
        return reference.fp8_linear(
            x, weight, weight_scale, bias, activations=activations, input_scale=input_scale
        )
    values, scale = fp8_quantize(x.flatten(0, -2), activations, scale=input_scale)
    return eager.scaled_matmul(values, scale, weight, weight_scale, bias, x)


def _block_shape(granularity: str, columns: int, has_scale: bool) -> tuple[int, int]:
    """Return the rows and columns of a program's block."""
    if granularity == "block":
        return TILE, TILE
    if granularity == "group":
        return _BLOCK // TILE, TILE
    width = triton.next_power_of_2(columns)
    width = min(width, _BLOCK) if has_scale else width
    return max(1, _BLOCK // width), width


def _block_grid(weight: torch.Tensor) -> tuple[int, int]:
    """Return the number of blocks along a weight's rows and columns."""
    return triton.cdiv(weight.shape[0], TILE), triton.cdiv(weight.shape[1], TILE)


def _has_fp8_conversion(device: torch.device) -> bool:
    """Return whether a GPU has an instruction that converts to FP8.

    Triton's interpreter also converts, but rounds differently.
    """
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 9)
    )


def _block_scaled_matmul(
    values: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Multiply FP8 matrices with scales per group and block; see `eager.scaled_matmul`."""
    rows, out_features = len(values), len(weight)
    y = like.new_empty(*like.shape[:-1], out_features)
    height = 16 if rows <= 16 else 128  # few rows: decoding
    with torch.cuda.device_of(values):
        kernels.block_scaled_matmul[triton.cdiv(out_features, TILE), triton.cdiv(rows, height)](
            values, scale.float().contiguous(), weight.contiguous(),
            weight_scale.float().contiguous(), None if bias is None else bias.contiguous(), y,
            rows, out_features, values.shape[1],
            TILE=TILE, BM=height, num_warps=4 if height == 16 else 8, num_stages=3,
        )  # fmt: skip
    return y
