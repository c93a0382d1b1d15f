"""FP8 on GPUs: rounding in one launch that reads once, and linear layers on its numbers."""

import torch
import triton

from hybridize.kernels.eager import fp8 as eager
from hybridize.kernels.reference import fp8 as reference
from hybridize.kernels.reference.fp8 import TILE
from hybridize.kernels.triton import fp8_kernels as kernels
from hybridize.kernels.triton.launch import INTERPRETED, evenly_spaced, spacing

_WIDEST = 16384
"""Columns of a row that a program can hold; the scales of wider rows are found beforehand."""

_TILE = 4096
"""Elements of a program whose scales do not ask for more."""

_BITS = {torch.float8_e4m3fn: (3, 7), torch.float8_e5m2: (2, 15)}
"""Bits of the mantissa, and the exponent's bias."""


def fp8_quantize(
    x: torch.Tensor,
    granularity: str,
    *,
    scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hybridize.kernels.fp8_quantize`; float64 goes through torch."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.fp8_quantize(x, granularity, scale=scale, dtype=dtype)
    if scale is None and (
        granularity == "tensor" or (granularity == "row" and x.shape[-1] > _WIDEST)
    ):
        scale = reference.fp8_scale(x, granularity, dtype=dtype)
    columns = x.shape[-1]
    rows = x.shape[-2] if granularity == "block" else x.numel() // columns
    matrices = x.numel() // (rows * columns)
    high, wide = _tile(granularity, columns, scale is not None)
    down, across = triton.cdiv(rows, high), triton.cdiv(columns, wide)
    # The scales' shape, and the steps between those of matrices, of rows or tiles, and of columns.
    shape, steps = {
        "tensor": ((1,), (0, 0, 0)),
        "row": ((*x.shape[:-1], 1), (0, 1, 0)),
        "group": ((*x.shape[:-1], across), (0, across, 1)),
        "block": ((*x.shape[:-2], down, across), (down * across, across, 1)),
    }[granularity]
    if scale is None:
        known = x.new_empty(shape, dtype=torch.float32)
    else:
        known = scale.float().broadcast_to(shape).contiguous()
    values = x.new_empty(x.shape, dtype=dtype)
    flat = evenly_spaced(x.reshape(matrices, rows, columns))
    with torch.cuda.device_of(x):
        kernels.quantize[down, across, matrices](
            flat, known, values if _converts(x.device) else values.view(torch.uint8),
            *spacing(flat), rows, columns, *steps,
            LARGEST=torch.finfo(dtype).max, WHOLE=granularity in ("tensor", "block"),
            GIVEN=scale is not None, MANTISSA=_BITS[dtype][0], BIAS=_BITS[dtype][1],
            BLOCK_R=high, BLOCK_C=wide, num_warps=min(16, max(4, high * wide // 1024)),
        )  # fmt: skip
    return values, known if scale is None else scale


def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hybridize.kernels.fp8_linear`; what has no FP8 product here goes through torch."""
    by_blocks = activations == "group" and weight_scale.shape == _blocks(weight)
    if by_blocks and x.numel() and (INTERPRETED or _converts(x.device)):
        values, scale = fp8_quantize(x.flatten(0, -2), activations, scale=input_scale)
        return _block_product(values, scale, weight, weight_scale, bias, x)
    if activations == "group" or not eager.has_fp8_product(x, weight, weight_scale):
        return reference.fp8_linear(
            x, weight, weight_scale, bias, activations=activations, input_scale=input_scale
        )
    values, scale = fp8_quantize(x.flatten(0, -2), activations, scale=input_scale)
    return eager.scaled_matmul(values, scale, weight, weight_scale, bias, x)


def _tile(granularity: str, columns: int, given: bool) -> tuple[int, int]:
    """Return the rows and columns of a program's tile."""
    if granularity == "block":
        return TILE, TILE
    if granularity == "group":
        return _TILE // TILE, TILE
    wide = triton.next_power_of_2(columns)
    wide = min(wide, _TILE) if given else wide
    return max(1, _TILE // wide), wide


def _blocks(weight: torch.Tensor) -> tuple[int, int]:
    return triton.cdiv(weight.shape[0], TILE), triton.cdiv(weight.shape[1], TILE)


def _converts(device: torch.device) -> bool:
    """Say whether a device has instructions for FP8; Triton's interpreter rounds it wrongly."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 9)
    )


def _block_product(
    values: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    rows, outs = len(values), len(weight)
    y = like.new_empty(*like.shape[:-1], outs)
    high = 16 if rows <= 16 else 128  # decoding, and all the rest
    with torch.cuda.device_of(values):
        kernels.block_product[triton.cdiv(outs, TILE), triton.cdiv(rows, high)](
            values, scale.float().contiguous(), weight.contiguous(),
            weight_scale.float().contiguous(), None if bias is None else bias.contiguous(), y,
            rows, outs, values.shape[1],
            TILE=TILE, BLOCK_M=high, num_warps=4 if high == 16 else 8, num_stages=3,
        )  # fmt: skip
    return y
