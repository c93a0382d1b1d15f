"""Attention of one token per sequence over cached keys and values.

The queries that share keys and values form one matrix. So keys and values are read once and never
repeated in memory. Reading them takes most of the time of a decoding step behind a long text.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def decode_attention(
    module: nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention over a cache of fixed size; one of transformers' attention functions.

    Args:
        module: not used.
        q: ``(batch, num_heads, 1, head_dim)``.
        k, v: ``(batch, num_kv_heads, capacity, head_dim)``.
        mask: ``(batch or 1, 1, 1, capacity)`` bool, False for keys that the token must not see.
        scaling: factor of the scores.
        kwargs: not used; dropout is zero, and ``mask`` includes the sliding window.

    Returns:
        ``(batch, 1, num_heads, head_dim)``, and None in place of the weights.
    """
    batch, num_heads, _, head_dim = q.shape
    grouped = q.view(batch, k.shape[1], num_heads // k.shape[1], head_dim)
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (grouped @ k.mT).to(dtype) * scaling
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype)
    return (weights @ v).reshape(batch, 1, num_heads, head_dim), None


def grouped_sdpa(
    module: nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with torch's fused kernel; one of transformers' attention functions.

    On a CPU, that kernel reads keys and values once for every query head. Here the query heads of
    a group take the place of the tokens of one head.

    Args:
        module: not used.
        q: ``(batch, num_heads, 1, head_dim)``.
        k, v: ``(batch, num_kv_heads, tokens, head_dim)``.
        mask: ``(batch, 1, 1, tokens)``, bool or to be added to the scores; None if every key is
            visible.
        scaling: factor of the scores.
        kwargs: not used; dropout is zero, and ``k`` and ``mask`` respect the sliding window.

    Returns:
        ``(batch, 1, num_heads, head_dim)``, and None in place of the weights.
    """
    batch, num_heads, _, head_dim = q.shape
    grouped = q.view(batch, k.shape[1], num_heads // k.shape[1], head_dim)
    y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scaling)
    return y.reshape(batch, 1, num_heads, head_dim), None
