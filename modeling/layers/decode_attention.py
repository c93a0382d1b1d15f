"""Attention of one token per sequence over a cache of fixed size."""

from typing import Any

import torch
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
    """Compute attention for one token per sequence; one of transformers' attention functions.

    The queries of a group form one matrix. So keys and values are read once and never repeated in
    memory. Reading them takes most of the time of a decoding step.

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
