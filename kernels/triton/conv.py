"""The causal convolution with SiLU in one launch per direction; only the inputs are saved."""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from hybridize.kernels.reference import conv as reference
from hybridize.kernels.reference.packed_sequences import number_sequences
from hybridize.kernels.triton import conv_kernels as kernels
from hybridize.kernels.triton.launch import (
    accumulator,
    evenly_spaced,
    inner_contiguous,
    spacing,
    wants_gradient,
    wide_dtype,
)

_TOKENS, _CHANNELS = 16, 128
"""Tokens and channels per block."""

_BACKWARD_BLOCKS = 8
"""Blocks per program of the backward pass; a program sums the weight's gradient over its blocks."""


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    conv_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.causal_conv1d`."""
    seq_idx = None if seq_idx is None else number_sequences(seq_idx)
    y: torch.Tensor = _Convolution.apply(x, weight, bias, conv_state, seq_idx)
    return y, _next_conv_state(x, conv_state, seq_idx, weight.shape[1] - 1)


def causal_conv1d_step(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Implement `hybridize.kernels.causal_conv1d_step`."""
    # The kernel updates conv_state in place and has no gradient.
    if wants_gradient(x, conv_state, weight, bias):
        return reference.causal_conv1d_step(x, conv_state, weight, bias)
    batch, channels = x.shape
    x, weight = inner_contiguous(x), weight.contiguous()
    y = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        kernels.conv_step[batch, triton.cdiv(channels, _CHANNELS)](
            x, conv_state, weight, None if bias is None else bias.contiguous(), y,
            x.stride(0), *conv_state.stride(), channels,
            WIDTH=weight.shape[1], BC=_CHANNELS, ACC=accumulator(x.dtype), num_warps=1,
        )  # fmt: skip
    return y


def _next_conv_state(
    x: torch.Tensor, conv_state: torch.Tensor | None, seq_idx: torch.Tensor | None, before: int
) -> torch.Tensor:
    """Return the ``conv_state`` of the next call: the last ``before`` inputs."""
    batch, length, channels = x.shape
    last = x[:, max(0, length - before) :]
    if seq_idx is not None:
        last = last * (seq_idx[:, max(0, length - before) :] == seq_idx[:, -1:])[..., None]
    if length >= before:
        return last
    if conv_state is None:
        conv_state = x.new_zeros(batch, before, channels)
    front = conv_state[:, length:].to(x.dtype)
    if seq_idx is not None:  # conv_state belongs to the first sequence, which has number 0
        front = front * (seq_idx[:, -1:] == 0)[..., None]
    return torch.cat([front, last], dim=1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        conv_state: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, length, channels = x.shape
        x, weight = evenly_spaced(x), weight.contiguous()
        bias, conv_state = (None if t is None else t.contiguous() for t in (bias, conv_state))
        y = x.new_empty(x.shape)
        blocks = triton.cdiv(length, _TOKENS), triton.cdiv(channels, _CHANNELS)
        with torch.cuda.device_of(x):
            kernels.conv_forward[batch * blocks[0], blocks[1]](
                x, weight, bias, conv_state, seq_idx, y, *spacing(x), length, channels, blocks[0],
                WIDTH=weight.shape[1], BT=_TOKENS, BC=_CHANNELS,
                ACC=accumulator(x.dtype), num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, conv_state, seq_idx)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, conv_state, seq_idx = ctx.saved_tensors
        batch, length, channels = x.shape
        width, dy = weight.shape[1], evenly_spaced(dy)
        dx = x.new_empty(x.shape)
        dconv_state = None if conv_state is None else conv_state.new_empty(conv_state.shape)
        programs = triton.cdiv(length + width - 1, _TOKENS * _BACKWARD_BLOCKS)
        sums = x.new_empty(batch * programs, width + 1, channels, dtype=wide_dtype(x.dtype))
        with torch.cuda.device_of(x):
            kernels.conv_backward[batch * programs, triton.cdiv(channels, _CHANNELS)](
                x, weight, bias, conv_state, seq_idx, dy, dx, dconv_state, sums,
                *spacing(x), *spacing(dy), length, channels, programs,
                WIDTH=width, SUMS=triton.next_power_of_2(width + 1), BLOCKS=_BACKWARD_BLOCKS,
                BT=_TOKENS, BC=_CHANNELS, ACC=accumulator(x.dtype), num_warps=4,
            )  # fmt: skip
        total = sums.sum(0)
        dweight = total[:width].T.to(weight.dtype)
        return dx, dweight, None if bias is None else total[width].to(bias.dtype), dconv_state, None
