"""A cache that stores keys and values in FP8, and SSM states in bfloat16 or FP8.

A row in FP8 is stored as its bytes, followed by the two bytes of its scale in bfloat16. For
transformers' cache layers this is only a longer row of uint8, so they handle growth, sliding
windows, beams and cropping as usual. Each block unpacks its own rows when it reads them.
"""

from typing import Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from typing_extensions import override

from hybridize.kernels import fp8_quantize, fp8_scale
from hybridize.modeling.cache.format import CacheFormat
from hybridize.modeling.cache.growing import GrowingLayer, GrowingSlidingWindowLayer
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig


def make_cache(config: HybridConfig, cache_format: CacheFormat) -> HybridCache:
    """Return an empty cache in the given format."""
    return CompactCache(config, cache_format) if cache_format.compact else HybridCache(config)


class CompactCache(HybridCache):
    """A cache whose tensors have the dtypes of a `CacheFormat`; see the module's docstring."""

    def __init__(self, config: HybridConfig, cache_format: CacheFormat) -> None:
        super().__init__(config)
        self._format = cache_format
        if cache_format.kv == "fp8":
            self.layers = [_fp8_layer(layer) for layer in self.layers]

    @override
    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        state = super().get_recurrent_state(layer_idx, state_idx)
        if state is None:
            return None
        if self._format.ssm == "fp8":
            return unpack_fp8_rows(state, torch.float32)
        return state.float()

    @override
    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        layer = self.layers[layer_idx]
        assert isinstance(layer, LinearAttentionCacheLayerMixin)
        if self._format.ssm == "fp8":
            recurrent_states = pack_fp8_rows(recurrent_states)
        elif self._format.ssm == "bfloat16":
            recurrent_states = recurrent_states.bfloat16()
        return layer.update_recurrent_state(recurrent_states, state_idx)

    @override
    def after_ssm_step(self, layer_idx: int, ssm_state: torch.Tensor) -> None:
        self.update_recurrent_state(ssm_state, layer_idx)  # `read_ssm` returned a copy


def pack_fp8_rows(x: torch.Tensor) -> torch.Tensor:
    """Return rows in E4M3 with their scales: ``(..., width)`` to ``(..., width + 2)`` uint8."""
    exact = fp8_scale(x, "row")
    scale = exact.bfloat16()
    # A scale that is rounded down would saturate the largest values of its row.
    scale = torch.where(scale.float() < exact, _next_bfloat16(scale), scale)
    values, _ = fp8_quantize(x, "row", scale=scale.float())
    return torch.cat([values.view(torch.uint8), scale.view(torch.uint8)], -1)


def unpack_fp8_rows(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Undo `pack_fp8_rows`, up to rounding: ``(..., width + 2)`` to ``(..., width)``."""
    values, scale = packed.split([packed.shape[-1] - 2, 2], -1)
    scale = scale.contiguous().view(torch.bfloat16)
    return (values.contiguous().view(torch.float8_e4m3fn).float() * scale.float()).to(dtype)


def _next_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Return the next larger bfloat16 of positive values."""
    return (x.view(torch.int16) + 1).view(torch.bfloat16)


class _StoredInFP8:
    """Mixin: the layer stores packed keys and values, and returns them in the caller's dtype."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = key_states.dtype
        packed = pack_fp8_rows(key_states), pack_fp8_rows(value_states)
        keys, values = super().update(*packed, *args, **kwargs)  # type: ignore[misc]
        return unpack_fp8_rows(keys, dtype), unpack_fp8_rows(values, dtype)


class _FP8Layer(_StoredInFP8, GrowingLayer):
    """Keys and values of all tokens."""


class _FP8SlidingWindowLayer(_StoredInFP8, GrowingSlidingWindowLayer):
    """Keys and values of the last tokens, for attention with a sliding window."""


def _fp8_layer(layer: Any) -> Any:
    """Return the FP8 counterpart of a layer with keys and values, or any other layer unchanged."""
    if isinstance(layer, GrowingSlidingWindowLayer):
        return _FP8SlidingWindowLayer(layer.sliding_window)
    return _FP8Layer() if isinstance(layer, GrowingLayer) else layer
