"""A cache at fixed addresses, so that decoding a token can be recorded and replayed."""

from functools import partial

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin, StaticLayer

from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes


class StaticHybridCache(HybridCache):
    """What a hybrid remembers of a fixed number of sequences, all of the same length.

    Prompts are read with an ordinary cache and taken over with `take`; from there, one token per
    sequence and call. Keys and values of the tokens to come have their place from the beginning,
    and how many tokens there are is a number on the device. So a step is the same sequence of
    operations on the same memory, whatever the length.

    Args:
        config: the model's.
        batch_size: sequences.
        capacity: tokens per sequence; no more may be decoded.
        dtype: of keys, values and convolution windows; SSM states are float32 or wider.
        device: where to put it.
    """

    def __init__(
        self,
        config: HybridConfig,
        batch_size: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config)
        self.capacity = capacity
        self._window = config.sliding_window
        empty = partial(torch.zeros, dtype=dtype, device=device)
        for index, sizes in enumerate(config.blocks):
            if isinstance(sizes, AttentionSizes):
                layer = StaticLayer(capacity)
                one = empty(batch_size, sizes.num_kv_heads, 1, sizes.head_dim)
                layer.lazy_initialization(one, one)
                self.layers[index] = layer
            elif isinstance(sizes, MambaSizes):
                window = (batch_size, sizes.conv_channels, sizes.conv_kernel - 1)
                self.update_conv_state(empty(window), index)
                state = torch.zeros(
                    batch_size, sizes.num_heads, sizes.head_dim, sizes.d_state,
                    dtype=torch.promote_types(dtype, torch.float32), device=device,
                )  # fmt: skip
                self.update_recurrent_state(state, index)

    def take(self, rows: slice, cache: HybridCache) -> None:
        """Copy what ``cache`` holds of some prompts into these rows."""
        for mine, theirs in zip(self.layers, cache.layers, strict=True):
            if isinstance(mine, StaticLayer):
                assert isinstance(theirs, CacheLayerMixin)
                _take_tokens(mine, theirs, rows)
            elif isinstance(mine, LinearAttentionCacheLayerMixin):
                assert isinstance(theirs, LinearAttentionCacheLayerMixin)
                _copy(mine.conv_states[0], theirs.conv_states[0], rows)
                _copy(mine.recurrent_states[0], theirs.recurrent_states[0], rows)

    def rewind(self) -> None:
        """Forget that there are tokens; states stay what they are."""
        for layer in self.layers:
            if isinstance(layer, StaticLayer):
                layer.cumulative_length.zero_()

    def visible(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return which places a token sees, by transformers' words for kinds of attention.

        Args:
            position: ``(batch or 1, 1)``, the token's own place.

        Returns:
            Boolean masks, ``(batch or 1, 1, 1, capacity)``.
        """
        places = torch.arange(self.capacity, device=position.device)
        back = (position[..., None] - places)[:, None]
        masks = {"full_attention": back >= 0}
        if self._window is not None:
            masks["sliding_attention"] = (back >= 0) & (back < self._window)
        return masks


def _take_tokens(mine: StaticLayer, theirs: CacheLayerMixin, rows: slice) -> None:
    assert theirs.keys is not None
    length = theirs.get_seq_length()
    places = slice(length - theirs.keys.shape[2], length)  # a sliding window has kept the last
    for held, new in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
        assert held is not None
        _copy(held[:, :, places], new, rows)
    mine.cumulative_length.fill_(length)


def _copy(held: torch.Tensor | None, new: torch.Tensor | None, rows: slice) -> None:
    assert held is not None
    assert new is not None
    held[rows].copy_(new)


def bytes_per_sequence(config: HybridConfig, capacity: int, width: int) -> int:
    """Return what a `StaticHybridCache` takes for each of its sequences.

    Args:
        config: the model's.
        capacity: tokens.
        width: bytes per element of keys, values and windows.
    """
    total = 0
    for sizes in config.blocks:
        if isinstance(sizes, AttentionSizes):
            total += 2 * capacity * sizes.num_kv_heads * sizes.head_dim * width
        elif isinstance(sizes, MambaSizes):
            total += (sizes.conv_kernel - 1) * sizes.conv_channels * width
            total += sizes.d_inner * sizes.d_state * max(width, 4)
    return total
