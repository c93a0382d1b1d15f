"""Activations that keep their inputs alone for the backward, and compute the rest again."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hybridize.kernels.eager.rows import is_one_tile, row_tiles
from hybridize.kernels.reference import activation as reference


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See `hybridize.kernels.swiglu`."""
    if is_one_tile(up):
        return reference.swiglu(gate, up)
    product: torch.Tensor = _SwiGLU.apply(gate, up)
    return product


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """See `hybridize.kernels.squared_relu`."""
    if is_one_tile(x):
        return reference.squared_relu(x)
    squared: torch.Tensor = _SquaredReLU.apply(x)
    return squared


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        product = up.new_empty(up.shape)
        for gate_rows, up_rows, rows in row_tiles(gate, up, product):
            torch.mul(F.silu(gate_rows), up_rows, out=rows)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dproduct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
        for dy, gate_rows, up_rows, to_gate, to_up in row_tiles(dproduct, gate, up, dgate, dup):
            torch.mul(dy, F.silu(gate_rows), out=to_up)
            to_gate.copy_(torch.ops.aten.silu_backward(dy * up_rows, gate_rows))
        return dgate, dup


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return F.relu(x).square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsquared: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return F.relu(x).mul_(dsquared).mul_(2)
