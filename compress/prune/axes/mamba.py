"""Mamba-2 blocks: whole heads, channels of every head, and channels of the state.

All heads of a group share B and C. Pruning is therefore group-aware: every group loses the same
number of heads (Taghibakhshi et al. 2025, arXiv 2504.11409, section 3).
"""

from dataclasses import replace

import torch
from typing_extensions import override

from hybridize.compress.prune.axes.base import ActivationStats, Axis, Slices, rows_of
from hybridize.modeling.layers.sizes import MambaSizes


class Heads(Axis[MambaSizes]):
    """A unit is one head of a group. Every group keeps the same number of heads.

    If every group has one head, a unit is a group: its B and C are removed with the head.
    """

    unit = "Mamba heads"
    block_kind = MambaSizes
    varies_per_block = True

    @override
    def count(self, sizes: MambaSizes) -> int:
        return sizes.num_heads

    @override
    def resize(self, sizes: MambaSizes, count: int) -> MambaSizes:
        n_groups = count if _one_head_per_group(sizes) else sizes.n_groups
        return replace(sizes, num_heads=count, n_groups=n_groups)

    @override
    def increment(self, sizes: MambaSizes, multiple_of: int | None) -> int:
        return 1 if _one_head_per_group(sizes) else sizes.n_groups

    @override
    def allows(self, sizes: MambaSizes, count: int) -> bool:
        even = _one_head_per_group(sizes) or count % sizes.n_groups == 0
        return super().allows(sizes, count) and even

    @override
    def keep(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        n_groups, heads_per_group = scores.shape
        if heads_per_group == 1:
            return super().keep(scores[:, 0], count)
        best = scores.topk(count // n_groups, -1).indices.sort(-1).values
        return (torch.arange(n_groups)[:, None] * heads_per_group + best).flatten()

    @override
    def lost_share(self, scores: torch.Tensor, count: int) -> float:
        total = float(scores.sum())
        kept = float(scores.flatten()[self.keep(scores, count)].sum())
        return 1 - kept / total if total > 0 else 0.0

    @override
    def score(self, sizes: MambaSizes, stats: ActivationStats) -> torch.Tensor:
        heads = stats.output.view(sizes.num_heads, sizes.head_dim).sum(-1)
        return heads.view(sizes.n_groups, -1)  # (n_groups, heads per group)

    @override
    def slices(self, sizes: MambaSizes, kept: torch.Tensor) -> Slices:
        groups = kept if _one_head_per_group(sizes) else torch.arange(sizes.n_groups)
        return _slices(
            sizes,
            heads=kept,
            inner=rows_of(kept, sizes.head_dim),
            bc=rows_of(groups, sizes.d_state),
        )


class HeadDim(Axis[MambaSizes]):
    """A unit is one channel of a head. Every head keeps the same number of channels."""

    unit = "channels per Mamba head"
    block_kind = MambaSizes

    @override
    def count(self, sizes: MambaSizes) -> int:
        return sizes.head_dim

    @override
    def resize(self, sizes: MambaSizes, count: int) -> MambaSizes:
        return replace(sizes, head_dim=count)

    @override
    def increment(self, sizes: MambaSizes, multiple_of: int | None) -> int:
        return max(1, sizes.head_dim // 8)

    @override
    def score(self, sizes: MambaSizes, stats: ActivationStats) -> torch.Tensor:
        return stats.output.view(sizes.num_heads, sizes.head_dim)

    @override
    def slices(self, sizes: MambaSizes, kept: torch.Tensor) -> Slices:
        heads = torch.arange(sizes.num_heads)
        inner = (heads[:, None] * sizes.head_dim + kept).flatten()
        return _slices(
            sizes, heads=heads, inner=inner, bc=torch.arange(sizes.n_groups * sizes.d_state)
        )


class StateSize(Axis[MambaSizes]):
    """A unit is one channel of B and C. Every group keeps the same number of channels."""

    unit = "Mamba state size"
    block_kind = MambaSizes

    @override
    def count(self, sizes: MambaSizes) -> int:
        return sizes.d_state

    @override
    def resize(self, sizes: MambaSizes, count: int) -> MambaSizes:
        return replace(sizes, d_state=count)

    @override
    def increment(self, sizes: MambaSizes, multiple_of: int | None) -> int:
        return max(1, sizes.d_state // 8)

    @override
    def score(self, sizes: MambaSizes, stats: ActivationStats) -> torch.Tensor:
        assert stats.state is not None, "every Mamba-2 block is measured with its state"
        return stats.state.view(sizes.n_groups, sizes.d_state)

    @override
    def slices(self, sizes: MambaSizes, kept: torch.Tensor) -> Slices:
        bc = (torch.arange(sizes.n_groups)[:, None] * sizes.d_state + kept).flatten()
        return _slices(
            sizes, heads=torch.arange(sizes.num_heads), inner=torch.arange(sizes.d_inner), bc=bc
        )


def _one_head_per_group(sizes: MambaSizes) -> bool:
    return sizes.num_heads == sizes.n_groups


def _slices(
    sizes: MambaSizes, *, heads: torch.Tensor, inner: torch.Tensor, bc: torch.Tensor
) -> Slices:
    """Return the slices of a block's parameters.

    Args:
        sizes: the sizes before the cut.
        heads: the heads to keep.
        inner: the channels of x and of the gate to keep.
        bc: the channels of B, and also of C, to keep.
    """
    d_inner, bc_width = sizes.d_inner, sizes.n_groups * sizes.d_state
    conv = torch.cat([inner, d_inner + bc, d_inner + bc_width + bc])  # x, B, C
    # The rows of in_proj are gate, x, B, C, dt.
    rows = torch.cat([inner, d_inner + conv, 2 * d_inner + 2 * bc_width + heads])
    return {
        "in_proj.weight": (0, rows),
        "in_proj.bias": (0, rows),
        "conv1d.weight": (0, conv),
        "conv1d.bias": (0, conv),
        "dt_bias": (0, heads),
        "A_log": (0, heads),
        "D": (0, heads),
        "norm.weight": (0, inner),
        "out_proj.weight": (1, inner),
    }
