"""Norms in one launch each way; the backward keeps the inputs alone.

The plain norm is the gated one without a gate, over one group.
"""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from hybridize.kernels.triton import norm_kernels as kernels
from hybridize.kernels.triton.launch import accumulator, flat_rows, tuning, wide_dtype

_BACKWARD_PROGRAMS = 512
"""Programs per group: each has one row of the weight's gradient, which are then summed."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `hybridize.kernels.rms_norm`."""
    y: torch.Tensor = _Norm.apply(x, None, weight, eps, x.shape[-1], False)
    return y


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    group_size: int,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    """See `hybridize.kernels.gated_rms_norm`."""
    y: torch.Tensor = _Norm.apply(x, gate, weight, eps, group_size, norm_before_gate)
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        group_size: int,
        norm_before_gate: bool,
    ) -> torch.Tensor:
        rows, gates = flat_rows(x), None if gate is None else flat_rows(gate)
        weight = weight.contiguous()
        y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
        constants = {
            "EPS": eps,
            "GROUP": group_size,
            "NORM_FIRST": norm_before_gate,
            "BLOCK": triton.next_power_of_2(group_size),
            "ROWS": max(1, tuning(x.device).rows // triton.next_power_of_2(group_size)),
            "ACC": accumulator(x.dtype),
        }
        grid = (triton.cdiv(len(rows), constants["ROWS"]), x.shape[-1] // group_size)
        with torch.cuda.device_of(x):
            kernels.norm_forward[grid](
                rows, gates, weight, y, rows.stride(0), _stride(gates), len(rows), x.shape[-1],
                **constants, num_warps=_warps(group_size),
            )  # fmt: skip
        ctx.save_for_backward(x, gate, weight)
        ctx.constants = constants
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        constants, width = ctx.constants, x.shape[-1]
        rows, gates, incoming = (
            flat_rows(x),
            None if gate is None else flat_rows(gate),
            flat_rows(dy),
        )
        dx = x.new_empty(x.shape)
        dgate = None if gate is None else gate.new_empty(gate.shape)
        tiles = triton.cdiv(len(rows), constants["ROWS"])
        programs = max(1, min(_BACKWARD_PROGRAMS, tiles))
        dweight = x.new_empty(programs, width, dtype=wide_dtype(x.dtype))
        with torch.cuda.device_of(x):
            kernels.norm_backward[programs, width // constants["GROUP"]](
                rows, gates, weight, incoming, dx, dgate, dweight,
                rows.stride(0), _stride(gates), incoming.stride(0), len(rows), width,
                triton.cdiv(tiles, programs), **constants, num_warps=_warps(constants["GROUP"]),
            )  # fmt: skip
        return dx, dgate, dweight.sum(0).to(weight.dtype), None, None, None


def _stride(rows: torch.Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


def _warps(group_size: int) -> int:
    """Return warps enough to keep a group in registers."""
    return min(16, max(4, triton.next_power_of_2(group_size) // 512))
