"""What a block needs to know besides its input."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache


@dataclass(frozen=True)
class BlockContext:
    """One forward pass's surroundings, the same for all blocks.

    Attributes:
        cache: what earlier calls left, to be read and moved on; None without caching.
        attention_masks: per layer type, as transformers' attention functions take them.
        padding_mask: ``(batch, length)``, False on padding; None where there is none.
        rotary: cosine and sine, ``(batch, length, rotary_dim)``; None without RoPE.
        seq_idx: ``(batch, length)``, which packed sequence a token belongs to; None if one.
        goes_on: ``(batch,)``, whether a row's first token belongs to the sequence that the cache
            ends with; None where it always does.
        attention_kwargs: passed on to transformers' attention function.
    """

    cache: Cache | None
    attention_masks: dict[str, Any]
    padding_mask: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None
    seq_idx: torch.Tensor | None
    goes_on: torch.Tensor | None
    attention_kwargs: dict[str, Any]
