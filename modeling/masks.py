"""Attention masks, and the padding mask that keeps a padded batch right.

Attention masks hide padding, later tokens and other packed sequences from attention. The padding
mask is for Mamba-2: on padding, its mixer sets the convolution's inputs and Δ to zero, so that
padding changes no state (see `hybridize.modeling.layers.mamba2`).
"""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.packed_sequences import positions_from_seq_idx


def causal_masks(
    config: HybridConfig,
    x: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor,
    seq_idx: torch.Tensor | None,
    cache: Cache | None,
) -> dict[str, Any]:
    """Return a mask for each kind of attention in the model, built by transformers.

    Args:
        config: the model's configuration.
        x: ``(batch, length, hidden)``; only its shape, dtype and device matter.
        attention_mask: ``(batch, past + length)``, 0 on padding, or None.
        position_ids: ``(batch or 1, length)``.
        seq_idx: ``(batch, length)``, the number of each token's packed sequence, or None.
        cache: gives the number of past tokens.

    Returns:
        By layer type (``full_attention``, ``sliding_attention``): the mask that transformers'
        attention functions take.
    """
    if seq_idx is not None:
        position_ids = positions_from_seq_idx(seq_idx)  # transformers finds sequences by positions
    layer_types = set(config.layer_types)
    masks = {}
    if "full_attention" in layer_types:
        masks["full_attention"] = create_causal_mask(config, x, attention_mask, cache, position_ids)
    if "sliding_attention" in layer_types:
        masks["sliding_attention"] = create_sliding_window_causal_mask(
            config, x, attention_mask, cache, position_ids
        )
    return masks


def padding_mask(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Return which of the last ``length`` tokens are not padding.

    Args:
        attention_mask: ``(batch, past + length)``, 0 on padding, or None.
        length: number of new tokens.

    Returns:
        ``(batch, length)`` bool, False on padding; None if no new token is padding.
    """
    if attention_mask is None or attention_mask.ndim != 2 or length == 1:
        return None  # with one token the model decodes, and that token is never padding
    mask = attention_mask[:, -length:].bool()
    return None if mask.all() else mask
