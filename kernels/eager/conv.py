"""The causal convolution as one multiply-add per tap, over tiles of tokens.

Library convolutions need the channels before the tokens, or have a slow backward pass. With the
channels last, each tap is a multiply-add of a shifted view. The backward pass saves only the
operands.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hybridize.kernels.reference.packed_sequences import number_sequences

_TILE = 1 << 17
"""Outputs per tile: 512 KiB in float32, half of a common second-level cache."""


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    conv_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.causal_conv1d`."""
    batch, length, channels = x.shape
    before = weight.shape[1] - 1
    if conv_state is None:
        conv_state = x.new_zeros(batch, before, channels)
    padded = torch.cat([conv_state.to(x.dtype), x], dim=1)
    last = padded[:, length:]
    if seq_idx is not None:
        # conv_state belongs to the first sequence, which has number 0.
        seq_idx = F.pad(number_sequences(seq_idx), (before, 0))
        last = last * (seq_idx[:, length:] == seq_idx[:, -1:])[..., None]
    y: torch.Tensor = _Convolution.apply(padded, weight, bias, seq_idx)
    return y, last


class _Convolution(torch.autograd.Function):
    """Convolution and SiLU of ``padded``: the ``conv_state``, followed by the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        padded: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(padded, weight, bias, seq_idx)
        taps = _Taps(padded, weight, bias, seq_idx)
        batch, tokens, channels = padded.shape
        y = padded.new_empty(batch, tokens - taps.before, channels)
        for tile in taps.tiles():
            y[:, tile] = F.silu(taps.convolve(tile), inplace=True)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        padded, weight, bias, seq_idx = ctx.saved_tensors
        taps = _Taps(padded, weight, bias, seq_idx)
        dpadded = torch.zeros_like(padded)
        dweight, dbias = torch.zeros_like(taps.weight), torch.zeros_like(taps.weight[0])
        for tile in taps.tiles():
            dsum = torch.ops.aten.silu_backward(dy[:, tile].to(taps.dtype), taps.convolve(tile))
            dbias += dsum.sum((0, 1))
            inputs = slice(tile.start, tile.stop + taps.before)
            dinput = torch.zeros_like(dpadded[:, inputs], dtype=taps.dtype)
            for tap, values in enumerate(taps.inputs(tile)):
                dweight[tap] += (dsum * values).sum((0, 1))
                dtap = dsum if seq_idx is None else dsum * taps.same_sequence(tile, tap)
                dinput[:, tap : tap + dsum.shape[1]].addcmul_(dtap, taps.weight[tap])
            dpadded[:, inputs] += dinput
        return (
            dpadded,
            dweight.T.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            None,
        )


class _Taps:
    """Reads the operands of a convolution one tile of tokens at a time, in float32 or wider.

    Attributes:
        before: number of tokens before the first output.
        dtype: the dtype of the computation.
        weight: ``(width, channels)``.
    """

    def __init__(
        self,
        padded: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
    ) -> None:
        self.dtype = torch.promote_types(padded.dtype, torch.float32)
        self.before = weight.shape[1] - 1
        self.weight = weight.T.to(self.dtype).contiguous()
        self._bias = torch.zeros_like(self.weight[0]) if bias is None else bias.to(self.dtype)
        self._padded, self._seq_idx = padded, seq_idx

    def tiles(self) -> Iterator[slice]:
        """Yield the output tokens of each tile, as a slice."""
        batch, tokens, channels = self._padded.shape
        length, size = tokens - self.before, max(1, _TILE // (batch * channels))
        for start in range(0, length, size):
            yield slice(start, min(start + size, length))

    def convolve(self, tile: slice) -> torch.Tensor:
        """Return the outputs before SiLU, ``(batch, tokens, channels)``."""
        values = self.inputs(tile)
        total = torch.addcmul(self._bias, next(values), self.weight[0])
        for weight, shifted in zip(self.weight[1:], values, strict=True):
            total.addcmul_(shifted, weight)
        return total

    def inputs(self, tile: slice) -> Iterator[torch.Tensor]:
        """Yield the inputs of each tap, the oldest tap first: ``(batch, tokens, channels)``."""
        for tap in range(self.before + 1):
            shifted = self._padded[:, tile.start + tap : tile.stop + tap].to(self.dtype)
            yield shifted if self._seq_idx is None else shifted * self.same_sequence(tile, tap)

    def same_sequence(self, tile: slice, tap: int) -> torch.Tensor:
        """Return whether a tap reads the token's own sequence, ``(batch, tokens, 1)`` bool."""
        assert self._seq_idx is not None
        tap_sequence = self._seq_idx[:, tile.start + tap : tile.stop + tap]
        token_sequence = self._seq_idx[:, tile.start + self.before : tile.stop + self.before]
        return (tap_sequence == token_sequence)[..., None]
