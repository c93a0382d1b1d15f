"""A cache for training on long sequences segment by segment."""

from copy import copy
from typing import Any, ClassVar

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from typing_extensions import override

from hybridize.modeling.cache.hybrid import HybridCache, ssm_states
from hybridize.modeling.config import HybridConfig


class SegmentCache(HybridCache):
    """Passes the state from one segment of a row to the next (truncated backpropagation).

    It differs from its parent in two ways. It supports packed sequences, and stores the sequence of
    each token. It replaces states instead of overwriting them, because the backward pass of an
    earlier segment may still need the old ones.

    Args:
        config: the model's.
        recomputed: whether the backward pass runs blocks again (activation checkpointing). They
            then read what they read in the forward pass: what a segment writes can be read only
            after the next call of `detach`, which must come before every segment.

    Attributes:
        seq_idx: ``(batch, tokens)``, the sequence of every token so far; None before the first
            segment.
    """

    supports_packed_sequences: ClassVar[bool] = True

    def __init__(self, config: HybridConfig, *, recomputed: bool = False) -> None:
        super().__init__(config)
        self._recomputed = recomputed
        self._written: dict[int, Any] = {}  # layers for the next segment, by index
        self.seq_idx: torch.Tensor | None = None

    @override
    def extend_seq_idx(self, seq_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        continues_previous = None
        if self.seq_idx is None:
            self.seq_idx = seq_idx
        else:
            continues_previous = self.seq_idx[:, -1] == seq_idx[:, 0]
            self.seq_idx = torch.cat([self.seq_idx, seq_idx], dim=1)
        return self.seq_idx, continues_previous

    @override
    def attention_masks(
        self,
        config: HybridConfig,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        seq_idx: torch.Tensor | None,
    ) -> dict[str, Any]:
        if seq_idx is None or self.seq_idx is None:
            return super().attention_masks(config, x, attention_mask, position_ids, seq_idx)
        windows = {"full_attention": None, "sliding_attention": config.sliding_window}
        return {
            layer_type: segment_mask(self.seq_idx, x.shape[1], window, x.dtype)
            for layer_type, window in windows.items()
            if layer_type in config.layer_types
        }

    def detach(self) -> None:
        """Detach all tensors, so that no gradient flows from later segments into earlier ones."""
        for index, layer in self._written.items():
            self.layers[index] = layer
        self._written = {}
        for layer in self.layers:
            for name in ("keys", "values"):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    setattr(layer, name, tensor.detach())
            for states in ssm_states(layer):
                states.update({k: v.detach() for k, v in states.items() if v is not None})

    def _copied(self, layer_idx: int) -> Any:
        """Return a copy of a layer to write into, which later becomes the layer."""
        layer = copy(self.layers[layer_idx])
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
        self._written[layer_idx] = layer
        return layer

    @override
    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._recomputed:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        found: tuple[torch.Tensor, torch.Tensor] = self._copied(layer_idx).update(
            key_states, value_states, *args, **kwargs
        )
        return found

    @override
    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        # A block writes its convolution state first, then its SSM state.
        layer = self._copied(layer_idx) if self._recomputed else self.layers[layer_idx]
        assert isinstance(layer, LinearAttentionCacheLayerMixin)
        layer.conv_states[state_idx] = conv_states
        layer.has_previous_state[state_idx] = True
        return conv_states

    @override
    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        layer = self._written[layer_idx] if self._recomputed else self.layers[layer_idx]
        assert isinstance(layer, LinearAttentionCacheLayerMixin)
        layer.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


def segment_mask(
    seq_idx: torch.Tensor, length: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return a mask for the last tokens of packed rows, to be added to attention scores.

    Args:
        seq_idx: ``(batch, tokens)``, of all tokens.
        length: number of last tokens, which are the queries.
        window: number of tokens that a query may attend to, itself included; all if None. A cache
            with a sliding window has at most ``window - 1`` tokens before the queries.
        dtype: the mask's dtype.

    Returns:
        ``(batch, 1, length, keys)``, zero where a query may attend.
    """
    total = seq_idx.shape[1]
    keys = total if window is None else min(total - length, window - 1) + length
    position = torch.arange(total, device=seq_idx.device)
    distance = position[-length:, None] - position[None, -keys:]
    visible = (distance >= 0) & (seq_idx[:, -length:, None] == seq_idx[:, None, -keys:])
    if window is not None:
        visible &= distance < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=seq_idx.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
