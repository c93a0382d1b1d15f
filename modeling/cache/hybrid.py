"""The ordinary cache of a hybrid, and the interface that the model uses for all caches."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin
from typing_extensions import override

from hybridize.modeling.cache.growing import growing
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.masks import causal_masks

_TOKENS = "hybridize_tokens"
"""The attribute of a cache's first layer that counts tokens if there is no attention.

Two caches that share their layers share this number too.
"""


class HybridCache(DynamicCache):
    """One entry per block: keys and values, or convolution and SSM state, or nothing.

    The tensors are in transformers' own cache layers, so `generate`, beam search and all other code
    for a `Cache` works. Keys and values grow in place (`hybridize.modeling.cache.growing`).
    `generate` makes the same layers from the configuration's ``layer_types``.

    Shapes: keys and values ``(batch, num_kv_heads, tokens, head_dim)``; the convolution state
    ``(batch, channels, conv_kernel - 1)``; the SSM state ``(batch, num_heads, head_dim, d_state)``
    in float32, or in float64 for a model in float64.

    Attributes:
        attention_function: computes attention over the cached keys and values, with the signature
            of transformers' attention functions; None for the one that the configuration names.
        supports_packed_sequences: whether a call may pass ``seq_idx`` together with this cache.
    """

    attention_function: ClassVar[Callable[..., Any] | None] = None
    supports_packed_sequences: ClassVar[bool] = False

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config=config)
        self.layers = [growing(layer) for layer in self.layers]

    @override
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens.

        Attention layers know it. Without any, the cache counts the tokens itself; transformers'
        would raise an error.
        """
        if layer_idx == 0 and self._lacks_attention:
            return int(vars(self.layers[0]).get(_TOKENS, 0))
        return super().get_seq_length(layer_idx)

    def count(self, tokens: int) -> None:
        """Tell the cache that the model has run on so many new tokens."""
        if self._lacks_attention:
            vars(self.layers[0])[_TOKENS] = self.get_seq_length() + tokens

    @override
    def reset(self) -> None:
        super().reset()
        if self._lacks_attention:
            vars(self.layers[0])[_TOKENS] = 0

    @property
    @override
    def is_linear(self) -> list[bool]:
        """Return whether each layer is a Mamba-2 block that does not know its number of tokens.

        `generate` leaves out the tokens that are in the cache unless this is true for all layers.
        """
        return [False] * len(self.layers) if self._lacks_attention else super().is_linear

    @property
    @override
    def is_compileable(self) -> bool:
        """Return whether `generate` may compile the model; without attention, it makes no masks."""
        return not self._lacks_attention and super().is_compileable

    @property
    def _lacks_attention(self) -> bool:
        return not any(isinstance(layer, CacheLayerMixin) for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the cache."""
        return sum(cache_bytes(self))

    def extend_seq_idx(self, seq_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Append the sequence numbers of new tokens, before the model runs on these tokens.

        Args:
            seq_idx: ``(batch, length)``, of the new tokens.

        Returns:
            The numbers of all tokens, ``(batch, past + length)``, and ``continues_previous``,
            ``(batch,)`` bool: whether a row's first new token belongs to the last cached sequence.
            It is None if there is nothing to continue.
        """
        return seq_idx, None

    def attention_masks(
        self,
        config: HybridConfig,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        seq_idx: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Return the masks for new tokens over the cached and the new keys; see `causal_masks`."""
        return causal_masks(config, x, attention_mask, position_ids, seq_idx, self)

    def read_ssm(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the states of a Mamba-2 block.

        Returns:
            The convolution state ``(batch, conv_kernel - 1, channels)`` and the SSM state
            ``(batch, num_heads, head_dim, d_state)``; None before the block's first call. A
            decoding step changes both in place and then calls `after_ssm_step`.
        """
        conv_state = self.get_conv_state(layer_idx)
        ssm_state = self.get_recurrent_state(layer_idx)
        if conv_state is None or ssm_state is None:
            return None
        return conv_state.transpose(1, 2), ssm_state

    def write_ssm(self, layer_idx: int, conv_state: torch.Tensor, ssm_state: torch.Tensor) -> None:
        """Store the states of a Mamba-2 block, in the shapes that `read_ssm` returns."""
        self.update_conv_state(conv_state.transpose(1, 2), layer_idx)
        self.update_recurrent_state(ssm_state, layer_idx)

    def after_ssm_step(self, layer_idx: int, ssm_state: torch.Tensor) -> None:
        """Store the states again, if necessary, after a decoding step has changed them in place.

        Here `read_ssm` returns the cache's own tensors, so they are already stored.
        """


def as_hybrid_cache(cache: Cache) -> HybridCache:
    """Return a `HybridCache` with the layers of any cache; both share them.

    Empty layers of the given cache are replaced by layers that grow in place, unless transformers
    moves them between devices.
    """
    if isinstance(cache, HybridCache):
        return cache
    if not getattr(cache, "offloading", False):
        cache.layers[:] = [growing(layer) for layer in cache.layers]
    hybrid = HybridCache.__new__(HybridCache)
    vars(hybrid).update(vars(cache))
    return hybrid


def cache_bytes(cache: Cache) -> tuple[int, int]:
    """Return the bytes of keys and values, and the bytes of convolution and SSM states."""
    kv = state = 0
    for layer in cache.layers:
        tensors = (getattr(layer, "keys", None), getattr(layer, "values", None))
        kv += sum(tensor.nbytes for tensor in tensors if tensor is not None)
        for states in ssm_states(layer):
            state += sum(tensor.nbytes for tensor in states.values() if tensor is not None)
    return kv, state


def ssm_states(layer: Any) -> Iterator[dict[int, torch.Tensor | None]]:
    """Yield the dictionaries of convolution states and SSM states in a layer of a cache."""
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, None)
        if isinstance(states, dict):
            yield states
