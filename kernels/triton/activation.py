"""Activations in one launch per direction; the backward pass saves only the inputs."""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from hybridize.kernels.triton import activation_kernels as kernels
from hybridize.kernels.triton.launch import accumulator, flat_rows

_BLOCK = 1024
"""Columns per program: each of its 128 threads loads 16 bytes of a 16-bit dtype at a time."""


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Implement `hybridize.kernels.swiglu`."""
    product: torch.Tensor = _SwiGLU.apply(gate, up)
    return product


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Implement `hybridize.kernels.squared_relu`."""
    squared: torch.Tensor = _SquaredReLU.apply(x)
    return squared


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        gate_rows, up_rows = flat_rows(gate), flat_rows(up)
        product = up.new_empty(up.shape)
        with torch.cuda.device_of(up):
            kernels.swiglu_forward[_grid(up)](
                gate_rows, up_rows, product, gate_rows.stride(0), up_rows.stride(0), up.shape[-1],
                BLOCK=_BLOCK, ACC=accumulator(up.dtype), num_warps=4,
            )  # fmt: skip
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dproduct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        gate_rows, up_rows, dy_rows = flat_rows(gate), flat_rows(up), flat_rows(dproduct)
        dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
        with torch.cuda.device_of(up):
            kernels.swiglu_backward[_grid(up)](
                gate_rows, up_rows, dy_rows, dgate, dup,
                gate_rows.stride(0), up_rows.stride(0), dy_rows.stride(0), up.shape[-1],
                BLOCK=_BLOCK, ACC=accumulator(up.dtype), num_warps=4,
            )  # fmt: skip
        return dgate, dup


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        rows, squared = flat_rows(x), x.new_empty(x.shape)
        with torch.cuda.device_of(x):
            kernels.squared_relu_forward[_grid(x)](
                rows, squared, rows.stride(0), x.shape[-1],
                BLOCK=_BLOCK, ACC=accumulator(x.dtype), num_warps=4,
            )  # fmt: skip
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsquared: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        rows, dy_rows, dx = flat_rows(x), flat_rows(dsquared), x.new_empty(x.shape)
        with torch.cuda.device_of(x):
            kernels.squared_relu_backward[_grid(x)](
                rows, dy_rows, dx, rows.stride(0), dy_rows.stride(0), x.shape[-1],
                BLOCK=_BLOCK, ACC=accumulator(x.dtype), num_warps=4,
            )  # fmt: skip
        return dx


def _grid(x: torch.Tensor) -> tuple[int, int]:
    return x.numel() // max(1, x.shape[-1]), triton.cdiv(x.shape[-1], _BLOCK)
