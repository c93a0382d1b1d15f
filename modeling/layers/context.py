"""The second argument of every block: cache, masks, RoPE angles and packed sequences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class BlockCache(Protocol):
    """The part of a cache that blocks use; see `hybridize.modeling.cache.hybrid.HybridCache`."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new keys and values; return all that are cached, the new ones included."""

    def read_ssm(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the convolution state and the SSM state of a block; None before its first call."""

    def write_ssm(self, layer_idx: int, conv_state: torch.Tensor, ssm_state: torch.Tensor) -> None:
        """Store the convolution state and the SSM state of a block."""

    def after_ssm_step(self, layer_idx: int, ssm_state: torch.Tensor) -> None:
        """Store the states again, if necessary, after a decoding step has changed them in place."""


@dataclass(frozen=True)
class BlockContext:
    """Everything that is the same for all blocks in one forward pass.

    Attributes:
        cache: read and updated by the blocks; None without caching.
        attention_function: computes attention, with the signature of transformers' functions.
        attention_masks: by layer type, the mask that ``attention_function`` takes.
        padding_mask: ``(batch, length)``, False on padding; None if there is no padding.
        rotary: cosine and sine, ``(batch, length, rotary_dim)``; None without RoPE.
        seq_idx: ``(batch, length)``, the number of each token's packed sequence; None if every
            row is one sequence.
        continues_previous: ``(batch,)``, whether a row's first token belongs to the last sequence
            in the cache; None if this is so for every row.
        attention_kwargs: further arguments of ``attention_function``.
    """

    cache: BlockCache | None
    attention_function: Callable[..., Any]
    attention_masks: dict[str, Any]
    padding_mask: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None
    seq_idx: torch.Tensor | None
    continues_previous: torch.Tensor | None
    attention_kwargs: dict[str, Any]
