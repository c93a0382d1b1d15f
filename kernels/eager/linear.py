"""Linear layers in bfloat16 and float16 on processors that cannot multiply these.

There torch multiplies number by number. Weights are converted to float32 instead, some rows at a
time so that the copy stays in the caches, and multiplied as float32 matrices are: sums then are
rounded once, at the end.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_BLOCK, _LEAST = 1 << 18, 16
"""Weights at a time, 1 MiB in float32; and tokens below which converting takes over."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See `hybridize.kernels.linear`."""
    if torch.is_autocast_enabled(x.device.type) and weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    tokens = x.numel() // max(1, x.shape[-1])
    ours = x.device.type == "cpu" and x.dtype == weight.dtype  # torch refuses to mix dtypes
    if not ours or tokens < _LEAST or multiplies(weight.dtype):
        return F.linear(x, weight, bias)
    y: torch.Tensor = _Linear.apply(x, weight, bias)
    return y


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Tell whether this processor, with this build of torch, multiplies matrices of a dtype."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    library = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return bool(library._is_mkldnn_bf16_supported())
    return bool(library._is_mkldnn_fp16_supported())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        wide = x.float()
        y = x.new_empty(*x.shape[:-1], len(weight))
        with torch.autocast("cpu", enabled=False):
            for rows in _row_blocks(weight):
                part = None if bias is None else bias[rows].float()
                y[..., rows] = F.linear(wide, weight[rows].float(), part)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        wide, dwide = x.float().flatten(0, -2), dy.float().flatten(0, -2)
        dx = torch.zeros_like(wide) if wants_x else None
        dweight = torch.empty_like(weight) if wants_weight else None
        with torch.autocast("cpu", enabled=False):
            for rows in _row_blocks(weight):
                part = dwide[:, rows]
                if dx is not None:
                    dx.addmm_(part, weight[rows].float())
                if dweight is not None:
                    dweight[rows] = part.T @ wide
        return (
            None if dx is None else dx.view(x.shape).to(x.dtype),
            dweight,
            dwide.sum(0).to(dy.dtype) if wants_bias else None,
        )


def _row_blocks(weight: torch.Tensor) -> list[slice]:
    """Return slices of a weight's rows, as many as are converted at once."""
    rows, columns = weight.shape
    at_once = max(1, _BLOCK // max(1, columns))
    return [slice(start, start + at_once) for start in range(0, rows, at_once)]
