"""A cache that stores keys and values in FP8, and SSM states in bfloat16 or FP8.

A row of FP8 lies in memory as its bytes followed by the two of its scale, in bfloat16. To
transformers' cache layers that is just a longer row of another dtype, so that growing, sliding
windows, beams and cropping are theirs. What is read is expanded one block at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from hybridize.errors import InputError
from hybridize.kernels import fp8_quantize, fp8_scale
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig

KV_DTYPES = ("auto", "fp8")
SSM_DTYPES = ("auto", "bfloat16", "fp8")


@dataclass(frozen=True)
class CacheFormat:
    """What a model's cache is stored in.

    Attributes:
        kv: ``auto``, the dtype of the computation, or ``fp8``.
        ssm: ``auto``, float32, or ``bfloat16`` or ``fp8``.

    Raises:
        InputError: neither of these.
    """

    kv: str = "auto"
    ssm: str = "auto"

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("--kv-cache-dtype", self.kv, KV_DTYPES),
            ("--ssm-cache-dtype", self.ssm, SSM_DTYPES),
        ):
            if value not in choices:
                raise InputError(f"{option} {value}: choose one of {', '.join(choices)}")

    @property
    def compact(self) -> bool:
        """Whether anything is stored in less than it is computed in."""
        return (self.kv, self.ssm) != ("auto", "auto")

    def make(self, config: HybridConfig) -> HybridCache:
        """Return an empty cache."""
        return CompactCache(config, self) if self.compact else HybridCache(config)


class CompactCache(HybridCache):
    """See the module."""

    def __init__(self, config: HybridConfig, stored: CacheFormat) -> None:
        super().__init__(config)
        self._stored = stored
        if stored.kv == "fp8":
            self.layers = [_in_fp8(layer) for layer in self.layers]

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return a block's SSM state in float32, a copy; `update_recurrent_state` stores it."""
        state = super().get_recurrent_state(layer_idx, state_idx)
        if state is None:
            return None
        return unpack(state, torch.float32) if self._stored.ssm == "fp8" else state.float()

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        """Store a block's SSM state."""
        layer = self.layers[layer_idx]
        assert isinstance(layer, LinearAttentionCacheLayerMixin)
        if self._stored.ssm == "fp8":
            recurrent_states = pack(recurrent_states)
        elif self._stored.ssm == "bfloat16":
            recurrent_states = recurrent_states.bfloat16()
        return layer.update_recurrent_state(recurrent_states, state_idx)


def pack(x: torch.Tensor) -> torch.Tensor:
    """Return rows in E4M3 with their scales: ``(..., width)`` to ``(..., width + 2)`` uint8."""
    exact = fp8_scale(x, "row")
    scale = exact.bfloat16()
    # Rounded down, a scale would push the largest values over the edge, where they saturate.
    scale = torch.where(scale.float() < exact, _next(scale), scale)
    values, _ = fp8_quantize(x, "row", scale=scale.float())
    return torch.cat([values.view(torch.uint8), scale.view(torch.uint8)], -1)


def unpack(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what `pack` was given, as rounded, in ``dtype``."""
    values, scale = packed.split([packed.shape[-1] - 2, 2], -1)
    scale = scale.contiguous().view(torch.bfloat16)
    return (values.contiguous().view(torch.float8_e4m3fn).float() * scale.float()).to(dtype)


def _next(x: torch.Tensor) -> torch.Tensor:
    """Return the next larger bfloat16 of what is positive."""
    return (x.view(torch.int16) + 1).view(torch.bfloat16)


class _InFp8:
    """Makes a layer hold packed keys and values, and hand out plain ones."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = key_states.dtype
        keys, values = super().update(pack(key_states), pack(value_states), *args, **kwargs)  # type: ignore[misc]
        return unpack(keys, dtype), unpack(values, dtype)


class _Fp8Layer(_InFp8, DynamicLayer):
    """All tokens."""


class _Fp8SlidingLayer(_InFp8, DynamicSlidingWindowLayer):
    """The last ones."""


def _in_fp8(layer: Any) -> Any:
    if isinstance(layer, DynamicSlidingWindowLayer):
        return _Fp8SlidingLayer(layer.sliding_window)
    return _Fp8Layer() if isinstance(layer, DynamicLayer) else layer
