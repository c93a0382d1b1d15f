"""Linear layers in bfloat16 and float16 on CPUs without native bf16/fp16 matrix multiplication.

On such CPUs torch multiplies these dtypes one number at a time. The code here converts blocks of
weight rows to float32, small enough for the caches, and multiplies float32 matrices. Each sum is
rounded once, at the end.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 18
"""Weights per block of rows: 1 MiB in float32."""

_MIN_TOKENS = 16
"""With fewer tokens, converting the weights would take longer than multiplying."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Implement `hybridize.kernels.linear`."""
    if torch.is_autocast_enabled(x.device.type) and weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    tokens = x.numel() // max(1, x.shape[-1])
    supported = x.device.type == "cpu" and x.dtype == weight.dtype  # torch rejects mixed dtypes
    if not supported or tokens < _MIN_TOKENS or is_native(weight.dtype):
        return F.linear(x, weight, bias)
    y: torch.Tensor = _Linear.apply(x, weight, bias)
    return y


@cache
def is_native(dtype: torch.dtype) -> bool:
    """Return whether this CPU and this build of torch multiply matrices of a dtype natively."""
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
                wide_bias = None if bias is None else bias[rows].float()
                y[..., rows] = F.linear(wide, weight[rows].float(), wide_bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad
        wide, wide_dy = x.float().flatten(0, -2), dy.float().flatten(0, -2)
        dx = torch.zeros_like(wide) if needs_dx else None
        dweight = torch.empty_like(weight) if needs_dweight else None
        with torch.autocast("cpu", enabled=False):
            for rows in _row_blocks(weight):
                dy_rows = wide_dy[:, rows]
                if dx is not None:
                    dx.addmm_(dy_rows, weight[rows].float())
                if dweight is not None:
                    dweight[rows] = dy_rows.T @ wide
        return (
            None if dx is None else dx.view(x.shape).to(x.dtype),
            dweight,
            wide_dy.sum(0).to(dy.dtype) if needs_dbias else None,
        )


def _row_blocks(weight: torch.Tensor) -> list[slice]:
    """Return the blocks of a weight's rows, as slices."""
    rows, columns = weight.shape
    block = max(1, _BLOCK // max(1, columns))
    return [slice(start, start + block) for start in range(0, rows, block)]
