"""Attention of single tokens to keys and values that lie in a cache of fixed size."""

import torch


def attend_to_held(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attend with one token per sequence.

    All queries of a group are one matrix, so that its keys and values are read once and never
    repeated in memory, which is what a decoding step takes its time for.

    Args:
        q: ``(batch, heads, 1, head_dim)``.
        k, v: ``(batch, kv_heads, capacity, head_dim)``.
        visible: ``(batch or 1, 1, 1, capacity)``, False on places that hold no earlier token.
        scaling: what scores are multiplied by.

    Returns:
        ``(batch, 1, heads, head_dim)``.
    """
    batch, heads, _, width = q.shape
    grouped = q.view(batch, k.shape[1], heads // k.shape[1], width)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (grouped @ k.mT).to(wide) * scaling
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).to(v.dtype)
    return (weights @ v).reshape(batch, 1, heads, width)
