"""Layers of keys and values that grow in place.

transformers' layers concatenate all keys and values with those of each new token. Behind thousands
of tokens, this copy takes most of a decoding step. The layers here keep room for more tokens behind
the last one, so that a step writes only its own keys and values.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from typing_extensions import override

_MIN_ROOM = 64
"""Smallest number of free tokens in a new buffer; one eighth of its tokens if that is more."""


@dataclass
class _Buffer:
    """Memory of keys or of values.

    Attributes:
        data: ``(batch, heads, capacity, width)``.
        filled: number of tokens that are written.
        held: the view of the last tokens that the layer holds. If the layer holds another tensor
            (after the selection of beams, cropping, ...), the buffer is out of date.
    """

    data: torch.Tensor
    filled: int
    held: torch.Tensor

    def has_room(self, past: torch.Tensor, new: torch.Tensor) -> bool:
        """Return whether ``new`` can be written behind ``past``."""
        writable = torch.is_inference_mode_enabled() or not self.data.is_inference()
        fits = self.filled + new.shape[-2] <= self.data.shape[2]
        same = (new.dtype, new.device, new.shape[:2]) == (past.dtype, past.device, past.shape[:2])
        return past is self.held and writable and fits and same


class _Growing:
    """Mixin: `update` writes behind the cached tokens where that is possible."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffers: dict[str, _Buffer] = {}

    def reset(self) -> None:
        """Remove all tokens, and their memory."""
        self._buffers = {}
        super().reset()  # type: ignore[misc]

    def _append(
        self, name: str, past: torch.Tensor, new: torch.Tensor, limit: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens to those that the layer holds.

        Args:
            name: ``"keys"`` or ``"values"``.
            past: the tokens that the layer holds, ``(batch, heads, tokens, width)``, or empty.
            new: ``(batch, heads, length, width)``.
            limit: largest number of tokens that the layer holds afterwards; all if None.

        Returns:
            Past and new tokens, and those of them that the layer holds from now on.
        """
        if torch.is_grad_enabled():  # the backward pass may need the tensors as they are
            full = torch.cat([past, new], dim=-2)
            return full, _last(full, limit)
        tokens = past.shape[-2] if past.numel() else 0
        total = tokens + new.shape[-2]
        buffer = self._buffers.get(name)
        if buffer is None or not buffer.has_room(past, new):
            capacity = total + max(_MIN_ROOM, total // 8)
            data = new.new_empty(*new.shape[:2], capacity, new.shape[-1])
            if tokens:
                data[:, :, :tokens] = past
            buffer = self._buffers[name] = _Buffer(data, tokens, past)
        end = buffer.filled + new.shape[-2]
        buffer.data[:, :, buffer.filled : end] = new
        full = buffer.data[:, :, end - total : end]
        buffer.filled, buffer.held = end, _last(full, limit)
        return full, buffer.held


def _last(full: torch.Tensor, limit: int | None) -> torch.Tensor:
    return full if limit is None else full[:, :, -limit:]


class GrowingLayer(_Growing, DynamicLayer):
    """Keys and values of all tokens."""

    @override
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        _, self.keys = self._append("keys", self.keys, key_states)
        _, self.values = self._append("values", self.values, value_states)
        return self.keys, self.values


class GrowingSlidingWindowLayer(_Growing, DynamicSlidingWindowLayer):
    """Keys and values of the last tokens, for attention with a sliding window."""

    @override
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.record_past or self.sliding_window < 2:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.cumulative_length += key_states.shape[-2]
        limit = self.sliding_window - 1
        keys, self.keys = self._append("keys", self.keys, key_states, limit)
        values, self.values = self._append("values", self.values, value_states, limit)
        return keys, values


def growing(layer: Any) -> Any:
    """Return the growing counterpart of an empty layer of transformers; others as they are."""
    if type(layer) is DynamicLayer and not layer.is_initialized:
        return GrowingLayer()
    if type(layer) is DynamicSlidingWindowLayer and not layer.is_initialized:
        return GrowingSlidingWindowLayer(layer.sliding_window)
    return layer
