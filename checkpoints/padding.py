"""Adding zero heads to the projections of attention."""

import torch
import torch.nn.functional as F

from hybridize.modeling.layers.sizes import AttentionSizes


def pad_projection(
    module: str, tensor: torch.Tensor, before: AttentionSizes, after: AttentionSizes
) -> torch.Tensor:
    """Add zero heads to every key/value group, and zero groups, in one projection.

    Args:
        module: ``q_proj``, ``k_proj``, ``v_proj`` or ``o_proj``.
        tensor: its weight, or its bias.
        before, after: the sizes before and after; see `stock_hybrid.pad_heads`.
    """
    if before.num_heads == after.num_heads or (module == "o_proj" and tensor.ndim == 1):
        return tensor
    more_groups = after.num_kv_heads - before.num_kv_heads
    group = before.num_heads // before.num_kv_heads
    new_group = after.num_heads // after.num_kv_heads
    dim = before.head_dim
    if module == "o_proj":  # (hidden, heads × head_dim)
        split = tensor.unflatten(1, (before.num_kv_heads, group, dim))
        return F.pad(split, (0, 0, 0, new_group - group, 0, more_groups)).flatten(1)
    flat = tensor if tensor.ndim == 2 else tensor[:, None]  # (heads × head_dim, hidden or 1)
    if module == "q_proj":
        split = flat.unflatten(0, (before.num_kv_heads, group, dim))
        padded = F.pad(split, (0, 0, 0, 0, 0, new_group - group, 0, more_groups)).flatten(0, 2)
    else:
        split = flat.unflatten(0, (before.num_kv_heads, dim))
        padded = F.pad(split, (0, 0, 0, 0, 0, more_groups)).flatten(0, 1)
    return padded if tensor.ndim == 2 else padded[:, 0]
