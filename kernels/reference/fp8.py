"""FP8 in plain torch: quantization, and the linear layer on FP8 numbers."""

import torch
import torch.nn.functional as F

TILE = 128
"""Rows and columns of a ``block``, and columns of a ``group``."""


def fp8_quantize(
    x: torch.Tensor,
    granularity: str,
    *,
    scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.fp8_quantize`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = torch.finfo(dtype).max
    if scale is None:
        scale = fp8_scale(x, granularity, dtype=dtype)
    # Clamp first: torch versions differ in how they convert numbers beyond the largest.
    values = (wide / broadcast_scale(scale, x.shape)).clamp(-largest, largest)
    return values.to(dtype), scale


def fp8_scale(
    x: torch.Tensor, granularity: str, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> torch.Tensor:
    """Implement `hybridize.kernels.fp8_scale`."""
    largest = _largest(x.abs(), granularity)
    largest = largest.to(torch.promote_types(x.dtype, torch.float32))
    scale = largest / torch.finfo(dtype).max
    scale = torch.where(largest == 0, torch.ones_like(scale), scale)
    # Division by a subnormal scale would lose precision.
    return scale.clamp_min(torch.finfo(torch.float32).tiny)


def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Implement `hybridize.kernels.fp8_linear` by dequantizing both operands."""
    wide = torch.promote_types(x.dtype, torch.float32)
    values, scale = fp8_quantize(x, activations, scale=input_scale)
    result = F.linear(
        fp8_dequantize(values, scale, wide),
        fp8_dequantize(weight, weight_scale, wide),
        None if bias is None else bias.to(wide),
    )
    return result.to(x.dtype)


def fp8_dequantize(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``values`` times ``scale``, of any shape that `broadcast_scale` takes."""
    return values.to(dtype) * broadcast_scale(scale, values.shape).to(dtype)


def broadcast_scale(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the scales in a form that broadcasts to ``shape``.

    A scale with one entry per tile of `TILE` elements, along the last dimension or the last two,
    is repeated for each element. Other scales broadcast already.
    """
    if scale.ndim < 2 and scale.numel() == 1:
        return scale
    for dim in (-1, -2):
        if len(shape) >= -dim and scale.shape[dim] not in (1, shape[dim]):
            scale = scale.repeat_interleave(TILE, dim).narrow(dim, 0, shape[dim])
    return scale


def _largest(x: torch.Tensor, granularity: str) -> torch.Tensor:
    """Return the largest magnitude of each group of numbers that share a scale."""
    match granularity:
        case "tensor":
            return x.amax().reshape(1)
        case "row":
            return x.amax(-1, keepdim=True)
        case "group":
            return _tiled(x, -1).amax(-1)
        case "block":
            return _tiled(_tiled(x, -1).amax(-1), -2).amax(-1)
    raise ValueError(f"granularity {granularity!r}: choose tensor, row, group or block")


def _tiled(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Split dimension ``dim`` into tiles; the elements of a tile are the last dimension."""
    x = x.movedim(dim, -1)
    x = F.pad(x, (0, -x.shape[-1] % TILE)).unflatten(-1, (-1, TILE))
    return x.movedim(-2, dim - 1)
