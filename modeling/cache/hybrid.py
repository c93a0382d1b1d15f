"""What a hybrid remembers between calls."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from hybridize.modeling.config import HybridConfig


class HybridCache(DynamicCache):
    """One entry per block: keys and values, or convolution window and SSM state, or nothing.

    transformers' own cache layers hold them, so that `generate`, beam search and whatever else
    knows a `Cache` works. `generate` makes the same cache from the configuration's
    ``layer_types``.

    Shapes: keys and values ``(batch, kv_heads, tokens, head_dim)``; the window
    ``(batch, channels, conv_width - 1)``; the state ``(batch, heads, head_dim, d_state)``,
    float32 or wider.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config=config)

    @property
    def nbytes(self) -> int:
        """Bytes that keys, values, windows and states take now."""
        total = 0
        for layer in self.layers:
            tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
            tensors += list(getattr(layer, "conv_states", {}).values())
            tensors += list(getattr(layer, "recurrent_states", {}).values())
            total += sum(tensor.nbytes for tensor in tensors if tensor is not None)
        return total


class SegmentCache(HybridCache):
    """What training goes on from when a long row is run in segments.

    Unlike its parent it holds packed sequences, remembers which one each token belonged to, and
    replaces states instead of overwriting them, which a backward pass may still need.

    Attributes:
        seq_idx: ``(batch, tokens)``, of all tokens so far; None before the first segment.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.seq_idx: torch.Tensor | None = None

    def extend(self, seq_idx: torch.Tensor) -> torch.Tensor | None:
        """Take note of the next segment's sequences, ``(batch, length)``.

        Returns:
            ``(batch,)``, whether a row's first token goes on with what the cache holds; None if
            it holds nothing yet.
        """
        if self.seq_idx is None:
            self.seq_idx = seq_idx
            return None
        goes_on = self.seq_idx[:, -1] == seq_idx[:, 0]
        self.seq_idx = torch.cat([self.seq_idx, seq_idx], dim=1)
        return goes_on

    def detach(self) -> None:
        """Cut the graph: what comes next sends no gradient into what was."""
        for layer in self.layers:
            for name in ("keys", "values"):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    setattr(layer, name, tensor.detach())
            for states in (
                getattr(layer, "conv_states", {}),
                getattr(layer, "recurrent_states", {}),
            ):
                states.update({k: v.detach() for k, v in states.items() if v is not None})

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        """Remember a block's convolution window."""
        layer = self.layers[layer_idx]
        assert isinstance(layer, LinearAttentionCacheLayerMixin)
        layer.conv_states[state_idx] = conv_states
        layer.has_previous_state[state_idx] = True
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        """Remember a block's SSM state."""
        layer = self.layers[layer_idx]
        assert isinstance(layer, LinearAttentionCacheLayerMixin)
        layer.recurrent_states[state_idx] = recurrent_states
        return recurrent_states
