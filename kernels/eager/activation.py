"""Activations whose backward pass saves only the inputs and recomputes everything else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hybridize.kernels.eager.rows import reference_is_as_fast, row_tiles
from hybridize.kernels.reference import activation as reference


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Implement `hybridize.kernels.swiglu`."""
    if reference_is_as_fast(up):
        return reference.swiglu(gate, up)
    product: torch.Tensor = _SwiGLU.apply(gate, up)
    return product


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Implement `hybridize.kernels.squared_relu`."""
    if reference_is_as_fast(x):
        return reference.squared_relu(x)
    squared: torch.Tensor = _SquaredReLU.apply(x)
    return squared


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        product = up.new_empty(up.shape)
        for gate_tile, up_tile, out in row_tiles(gate, up, product):
            torch.mul(F.silu(gate_tile), up_tile, out=out)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dproduct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
        for dy, gate_tile, up_tile, dgate_out, dup_out in row_tiles(dproduct, gate, up, dgate, dup):
            torch.mul(dy, F.silu(gate_tile), out=dup_out)
            dgate_out.copy_(torch.ops.aten.silu_backward(dy * up_tile, gate_tile))
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
