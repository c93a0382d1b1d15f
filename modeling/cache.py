"""What a hybrid remembers between calls."""

from transformers import DynamicCache

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
