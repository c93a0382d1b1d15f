"""The feed-forward block without a gate, some tokens at a time.

What is widest in it, ``(tokens, width)`` before and behind the activation, exists for these tokens
alone: the backward keeps the block's input, and computes the rest again.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_TILE, _LEAST = 4 << 20, 512
"""Bytes of one wide intermediate, and tokens below which reading the weights would take over."""


def squared_relu_mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hybridize.kernels.squared_relu_mlp`."""
    operands = [x, up, down, up_bias, down_bias]
    if torch.is_autocast_enabled(x.device.type):  # as it would do for each linear layer
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
            if wanted
            else None
            for weight, wanted in zip(weights, ctx.needs_input_grad[1:], strict=True)
        )
        for rows, incoming, out in _tiles(up, x, dy, dx):
            positive = F.linear(rows, up, up_bias).relu_()
            _add_product(ddown, incoming, positive.square())
            inner = (incoming @ down).mul_(positive).mul_(2)
            _add_product(dup, inner, rows)
            torch.mm(inner, up, out=out)
            if dup_bias is not None:
                dup_bias += inner.sum(0)
            if ddown_bias is not None:
                ddown_bias += incoming.sum(0)
        return dx, *(
            None if sums is None else sums.to(weight.dtype)
            for sums, weight in zip((dup, ddown, dup_bias, ddown_bias), weights, strict=True)
        )


def _tiles(up: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same tokens of every tensor, as many as make one tile behind ``up``."""
    at_once = max(_LEAST, _TILE // max(1, len(up) * up.element_size()))
    flat = [tensor.reshape(-1, tensor.shape[-1]).split(at_once) for tensor in tensors]
    return zip(*flat, strict=True)


def _add_product(sums: torch.Tensor | None, to: torch.Tensor, of: torch.Tensor) -> None:
    """Add some tokens' gradient of a weight ``(to, of)`` to the sums, where they are wanted."""
    if sums is None:
        return
    if sums.dtype == to.dtype:
        sums.addmm_(to.T, of)
    else:
        sums += to.T @ of
