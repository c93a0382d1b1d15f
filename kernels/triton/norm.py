"""Norms in one launch per direction; the backward pass saves only the inputs.

The plain norm is the gated norm with one group and no gate.
"""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from hybridize.kernels.triton import norm_kernels as kernels
from hybridize.kernels.triton.launch import (
    accumulator,
    flat_rows,
    norm_warps,
    tuning,
    wide_dtype,
)

_BACKWARD_PROGRAMS = 512
"""Programs per group. Each writes one partial sum of the weight's gradient."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Implement `hybridize.kernels.rms_norm`."""
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
    """Implement `hybridize.kernels.gated_rms_norm`."""
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
        x_rows, gate_rows = flat_rows(x), None if gate is None else flat_rows(gate)
        weight = weight.contiguous()
        y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
        constants = {
            "EPS": eps,
            "GROUP": group_size,
            "NORM_FIRST": norm_before_gate,
            "BC": triton.next_power_of_2(group_size),
            "BR": max(1, tuning(x.device).row_block // triton.next_power_of_2(group_size)),
            "ACC": accumulator(x.dtype),
        }
        grid = (triton.cdiv(len(x_rows), constants["BR"]), x.shape[-1] // group_size)
        with torch.cuda.device_of(x):
            kernels.norm_forward[grid](
                x_rows, gate_rows, weight, y,
                x_rows.stride(0), _stride(gate_rows), len(x_rows), x.shape[-1],
                **constants, num_warps=norm_warps(group_size),
            )  # fmt: skip
        ctx.save_for_backward(x, gate, weight)
        ctx.constants = constants
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        constants, width = ctx.constants, x.shape[-1]
        x_rows, dy_rows = flat_rows(x), flat_rows(dy)
        gate_rows = None if gate is None else flat_rows(gate)
        dx = x.new_empty(x.shape)
        dgate = None if gate is None else gate.new_empty(gate.shape)
        blocks = triton.cdiv(len(x_rows), constants["BR"])
        programs = max(1, min(_BACKWARD_PROGRAMS, blocks))
        dweight = x.new_empty(programs, width, dtype=wide_dtype(x.dtype))
        with torch.cuda.device_of(x):
            kernels.norm_backward[programs, width // constants["GROUP"]](
                x_rows, gate_rows, weight, dy_rows, dx, dgate, dweight,
                x_rows.stride(0), _stride(gate_rows), dy_rows.stride(0), len(x_rows), width,
                triton.cdiv(blocks, programs),
                **constants, num_warps=norm_warps(constants["GROUP"]),
            )  # fmt: skip
        return dx, dgate, dweight.sum(0).to(weight.dtype), None, None, None


def _stride(rows: torch.Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)
