"""The causal convolution as a few multiply-adds over tokens that fit into the caches.

Libraries lay channels out first, or are slow in the backward; with channels last every tap
is one multiply-add of a shifted view. The backward keeps the inputs alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_TILE = 1 << 17
"""Elements of a tile's outputs: 512 KiB in float32, half of a common second-level cache."""


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    conv_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hybridize.kernels.causal_conv1d`."""
    batch, length, channels = x.shape
    before = weight.shape[1] - 1
    if conv_state is None:
        conv_state = x.new_zeros(batch, before, channels)
    padded = torch.cat([conv_state.to(x.dtype), x], dim=1)
    last = padded[:, length:]
    if seq_idx is not None:
        # Counted, so that a number that comes again is another sequence.
        seq_idx = (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).cumsum(1)
        seq_idx = F.pad(seq_idx, (before, 0))  # the conv_state is of the first sequence
        last = last * (seq_idx[:, length:] == seq_idx[:, -1:])[..., None]
    y: torch.Tensor = _Convolution.apply(padded, weight, bias, seq_idx)
    return y, last


class _Convolution(torch.autograd.Function):
    """The convolution of inputs with their conv_state in front, and SiLU."""

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
        for piece in taps.tiles():
            y[:, piece] = F.silu(taps.summed(piece), inplace=True)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        padded, weight, bias, seq_idx = ctx.saved_tensors
        taps = _Taps(padded, weight, bias, seq_idx)
        dpadded = torch.zeros_like(padded)
        dweight, dbias = torch.zeros_like(taps.weight), torch.zeros_like(taps.weight[0])
        for piece in taps.tiles():
            dsum = torch.ops.aten.silu_backward(dy[:, piece].to(taps.dtype), taps.summed(piece))
            dbias += dsum.sum((0, 1))
            reach = slice(piece.start, piece.stop + taps.before)
            dinput = torch.zeros_like(dpadded[:, reach], dtype=taps.dtype)
            for tap, values in enumerate(taps.inputs(piece)):
                dweight[tap] += (dsum * values).sum((0, 1))
                seen = dsum if seq_idx is None else dsum * taps.same(piece, tap)
                dinput[:, tap : tap + dsum.shape[1]].addcmul_(seen, taps.weight[tap])
            dpadded[:, reach] += dinput
        return (
            dpadded,
            dweight.T.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            None,
        )


class _Taps:
    """A convolution's operands, some tokens at a time and in float32 or wider.

    Attributes:
        before: tokens in front of the first output.
        dtype: what is computed in.
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
        """Yield outputs that belong together."""
        batch, tokens, channels = self._padded.shape
        length, size = tokens - self.before, max(1, _TILE // (batch * channels))
        for start in range(0, length, size):
            yield slice(start, min(start + size, length))

    def summed(self, piece: slice) -> torch.Tensor:
        """Return the outputs before SiLU, ``(batch, tokens, channels)``."""
        values = self.inputs(piece)
        total = torch.addcmul(self._bias, next(values), self.weight[0])
        for weight, shifted in zip(self.weight[1:], values, strict=True):
            total.addcmul_(shifted, weight)
        return total

    def inputs(self, piece: slice) -> Iterator[torch.Tensor]:
        """Yield what each tap sees, the oldest first."""
        for tap in range(self.before + 1):
            shifted = self._padded[:, piece.start + tap : piece.stop + tap].to(self.dtype)
            yield shifted if self._seq_idx is None else shifted * self.same(piece, tap)

    def same(self, piece: slice, tap: int) -> torch.Tensor:
        """Return which tokens have a tap in their own sequence, ``(batch, tokens, 1)``."""
        assert self._seq_idx is not None
        there = self._seq_idx[:, piece.start + tap : piece.stop + tap]
        here = self._seq_idx[:, piece.start + self.before : piece.stop + self.before]
        return (there == here)[..., None]
