"""The MLP without a gate, one tile of tokens at a time.

The wide activations, ``(tokens, width)``, exist for one tile only. The backward pass saves only the
operands and recomputes everything else.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_TILE_BYTES = 4 << 20
"""Size of one wide activation of a tile."""

_MIN_TOKENS = 512
"""With fewer tokens in a tile, reading the weights would take most of the time."""


def squared_relu_mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Implement `hybridize.kernels.squared_relu_mlp`."""
    operands = [x, up, down, up_bias, down_bias]
    if torch.is_autocast_enabled(x.device.type):  # as autocast does for each linear layer
        dtype = torch.get_autocast_dtype(x.device.type)
        operands = [None if t is None else t.to(dtype) for t in operands]
    y: torch.Tensor = _SquaredReLUMLP.apply(*operands)
    return y


class _SquaredReLUMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        up_bias: torch.Tensor | None,
        down_bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, up, down, up_bias, down_bias)
        y = x.new_empty(*x.shape[:-1], len(down))
        for rows, out in _tiles(up, x, y):
            squared = F.linear(rows, up, up_bias).relu_().square_()
            out.copy_(F.linear(squared, down, down_bias))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        up, down, up_bias, _ = weights
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dup, ddown, dup_bias, ddown_bias = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            if needed
            else None
            for weight, needed in zip(weights, ctx.needs_input_grad[1:], strict=True)
        )
        for rows, dy_rows, out in _tiles(up, x, dy, dx):
            positive = F.linear(rows, up, up_bias).relu_()
            _add_weight_gradient(ddown, dy_rows, positive.square())
            dinner = (dy_rows @ down).mul_(positive).mul_(2)
            _add_weight_gradient(dup, dinner, rows)
            torch.mm(dinner, up, out=out)
            if dup_bias is not None:
                dup_bias += dinner.sum(0)
            if ddown_bias is not None:
                ddown_bias += dy_rows.sum(0)
        return dx, *(
            None if sums is None else sums.to(weight.dtype)
            for sums, weight in zip((dup, ddown, dup_bias, ddown_bias), weights, strict=True)
        )


def _tiles(up: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same tile of tokens of every tensor; ``up`` determines the tile's size."""
    tokens = max(_MIN_TOKENS, _TILE_BYTES // max(1, len(up) * up.element_size()))
    flat = [tensor.reshape(-1, tensor.shape[-1]).split(tokens) for tensor in tensors]
    return zip(*flat, strict=True)


def _add_weight_gradient(sums: torch.Tensor | None, dout: torch.Tensor, x: torch.Tensor) -> None:
    """Add ``dout.T @ x``, one tile's gradient of a weight, to ``sums`` unless ``sums`` is None."""
    if sums is None:
        return
    if sums.dtype == dout.dtype:
        sums.addmm_(dout.T, x)
    else:
        sums += dout.T @ x
