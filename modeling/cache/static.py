"""A cache at fixed memory addresses, so that a decoding step can be a CUDA graph."""

from functools import partial
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin, StaticLayer
from typing_extensions import override

from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.decode_attention import decode_attention
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes


class StaticHybridCache(HybridCache):
    """The cache of a fixed number of sequences, all of the same length.

    Prompts run with an ordinary cache, which `copy_from` then copies into this one. After that,
    each call decodes one token per sequence. The memory for all keys and values is allocated at the
    beginning, and the number of tokens is a tensor on the device. So every step does the same
    operations on the same memory.

    Args:
        config: the model's configuration.
        batch_size: number of sequences.
        capacity: largest number of tokens per sequence.
        dtype: dtype of keys, values and convolution states. SSM states are float32, or float64 if
            this is float64.
        device: the cache's device.
    """

    attention_function = staticmethod(decode_attention)

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
        empty = partial(torch.zeros, dtype=dtype, device=device)
        for layer_idx, sizes in enumerate(config.blocks):
            if isinstance(sizes, AttentionSizes):
                layer = StaticLayer(capacity)
                one_token = empty(batch_size, sizes.num_kv_heads, 1, sizes.head_dim)
                layer.lazy_initialization(one_token, one_token)
                self.layers[layer_idx] = layer
            elif isinstance(sizes, MambaSizes):
                conv_state = empty(batch_size, sizes.conv_channels, sizes.conv_kernel - 1)
                self.update_conv_state(conv_state, layer_idx)
                ssm_state = torch.zeros(
                    batch_size, sizes.num_heads, sizes.head_dim, sizes.d_state,
                    dtype=torch.promote_types(dtype, torch.float32), device=device,
                )  # fmt: skip
                self.update_recurrent_state(ssm_state, layer_idx)

    @override
    def attention_masks(
        self,
        config: HybridConfig,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        seq_idx: torch.Tensor | None,
    ) -> dict[str, Any]:
        if x.shape[1] != 1 or attention_mask is not None:
            raise ValueError("a StaticHybridCache takes one token per sequence and no mask")
        slots = torch.arange(self.capacity, device=position_ids.device)
        distance = (position_ids[..., None] - slots)[:, None]
        masks = {"full_attention": distance >= 0}
        if config.sliding_window is not None:
            masks["sliding_attention"] = (distance >= 0) & (distance < config.sliding_window)
        return masks

    def copy_from(self, cache: HybridCache, sequences: slice) -> None:
        """Copy the cache of some prompts to the given sequences.

        Args:
            cache: an ordinary cache, after the prompts have run.
            sequences: the sequences of this cache to overwrite; as many as ``cache`` has.
        """
        for target, source in zip(self.layers, cache.layers, strict=True):
            if isinstance(target, StaticLayer):
                assert isinstance(source, CacheLayerMixin)
                _copy_tokens(target, source, sequences)
            elif isinstance(target, LinearAttentionCacheLayerMixin):
                assert isinstance(source, LinearAttentionCacheLayerMixin)
                _copy(target.conv_states[0], source.conv_states[0], sequences)
                _copy(target.recurrent_states[0], source.recurrent_states[0], sequences)

    def reset_length(self) -> None:
        """Set the number of tokens to zero. States keep their values."""
        for layer in self.layers:
            if isinstance(layer, StaticLayer):
                layer.cumulative_length.zero_()


def _copy_tokens(target: StaticLayer, source: CacheLayerMixin, sequences: slice) -> None:
    assert source.keys is not None
    length = source.get_seq_length()
    slots = slice(length - source.keys.shape[2], length)  # a sliding window keeps the last tokens
    for to, values in ((target.keys, source.keys), (target.values, source.values)):
        assert to is not None
        _copy(to[:, :, slots], values, sequences)
    target.cumulative_length.fill_(length)


def _copy(target: torch.Tensor | None, source: torch.Tensor | None, sequences: slice) -> None:
    assert target is not None
    assert source is not None
    target[sequences].copy_(source)
