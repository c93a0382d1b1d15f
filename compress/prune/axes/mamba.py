"""Mamba-2 blocks: heads within their groups, channels within every head, and the state.

Heads of a group share B and C, so that as many have to leave every group: group-aware pruning
(Taghibakhshi et al. 2025, arXiv 2504.11409, section 3).
"""

from dataclasses import replace
from typing import ClassVar

import torch

from hybridize.compress.prune.axes.base import BlockAxis, Seen, Slices, spans
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import BlockSizes, MambaSizes


class Heads(BlockAxis):
    """A unit is a head of a group; where groups have one head each, it is the group.

    Then its B and C leave with it.
    """

    name = "mamba-heads"
    unit = "Mamba heads"
    kind: ClassVar[type[BlockSizes]] = MambaSizes

    def units(self, sizes: BlockSizes) -> int:
        """See `BlockAxis.units`."""
        assert isinstance(sizes, MambaSizes)
        return sizes.num_heads

    def possible(self, config: HybridConfig, count: int) -> bool:
        """See `Axis.possible`: as many in every group."""
        sizes = config.blocks[self.places(config)[0]]
        assert isinstance(sizes, MambaSizes)
        alone = sizes.num_heads == sizes.n_groups
        return super().possible(config, count) and (alone or count % sizes.n_groups == 0)

    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """See `BlockAxis.with_units`."""
        assert isinstance(sizes, MambaSizes)
        groups = count if sizes.num_heads == sizes.n_groups else sizes.n_groups
        return replace(sizes, num_heads=count, n_groups=groups)

    def keep(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """See `Axis.keep`; ``scores`` is ``(groups, heads of a group)``."""
        groups, each = scores.shape
        if each == 1:
            return super().keep(scores[:, 0], count)
        best = scores.topk(count // groups, -1).indices.sort(-1).values
        return (torch.arange(groups)[:, None] * each + best).flatten()

    def lost(self, scores: torch.Tensor, count: int) -> float:
        """See `Axis.lost`."""
        total = float(scores.sum())
        kept = float(scores.flatten()[self.keep(scores, count)].sum())
        return 1 - kept / total if total > 0 else 0.0

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(groups, heads of a group)``."""
        sizes = config.blocks[place]
        assert isinstance(sizes, MambaSizes)
        heads = seen.output.view(sizes.num_heads, sizes.head_dim).sum(-1)
        return heads.view(sizes.n_groups, -1)

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`."""
        sizes = config.blocks[place]
        assert isinstance(sizes, MambaSizes)
        alone = sizes.num_heads == sizes.n_groups
        groups = kept if alone else torch.arange(sizes.n_groups)
        return _slices(
            sizes, heads=kept, inner=spans(kept, sizes.head_dim), bc=spans(groups, sizes.d_state)
        )


class Channels(BlockAxis):
    """A unit is a channel that every head has: the same ones leave all heads."""

    name = "mamba-channels"
    unit = "channels per Mamba head"
    kind: ClassVar[type[BlockSizes]] = MambaSizes

    def units(self, sizes: BlockSizes) -> int:
        """See `BlockAxis.units`."""
        assert isinstance(sizes, MambaSizes)
        return sizes.head_dim

    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """See `BlockAxis.with_units`."""
        assert isinstance(sizes, MambaSizes)
        return replace(sizes, head_dim=count)

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(heads, head_dim)``."""
        sizes = config.blocks[place]
        assert isinstance(sizes, MambaSizes)
        return seen.output.view(sizes.num_heads, sizes.head_dim)

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`; ``kept`` is ``(heads, count)``: each head has its own."""
        sizes = config.blocks[place]
        assert isinstance(sizes, MambaSizes)
        heads = torch.arange(sizes.num_heads)
        inner = (heads[:, None] * sizes.head_dim + kept).flatten()
        return _slices(
            sizes, heads=heads, inner=inner, bc=torch.arange(sizes.n_groups * sizes.d_state)
        )


class StateSize(BlockAxis):
    """A unit is a channel of B and C in every group, each group its own."""

    name = "mamba-state"
    unit = "Mamba state size"
    kind: ClassVar[type[BlockSizes]] = MambaSizes

    def units(self, sizes: BlockSizes) -> int:
        """See `BlockAxis.units`."""
        assert isinstance(sizes, MambaSizes)
        return sizes.d_state

    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """See `BlockAxis.with_units`."""
        assert isinstance(sizes, MambaSizes)
        return replace(sizes, d_state=count)

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(groups, d_state)``."""
        sizes = config.blocks[place]
        assert isinstance(sizes, MambaSizes)
        assert seen.state is not None
        return seen.state.view(sizes.n_groups, sizes.d_state)

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`; ``kept`` is ``(groups, count)``."""
        sizes = config.blocks[place]
        assert isinstance(sizes, MambaSizes)
        bc = (torch.arange(sizes.n_groups)[:, None] * sizes.d_state + kept).flatten()
        return _slices(
            sizes, heads=torch.arange(sizes.num_heads), inner=torch.arange(sizes.d_inner), bc=bc
        )


def _slices(
    sizes: MambaSizes, *, heads: torch.Tensor, inner: torch.Tensor, bc: torch.Tensor
) -> Slices:
    """Return how a block changes of which some heads, inner channels, and rows of B and C stay."""
    width, shared = sizes.d_inner, sizes.n_groups * sizes.d_state
    mixed = torch.cat([inner, width + bc, width + shared + bc])  # x, B, C
    rows = torch.cat([inner, width + mixed, 2 * width + 2 * shared + heads])  # gate, x, B, C, dt
    return {
        "in_proj.weight": (0, rows),
        "in_proj.bias": (0, rows),
        "conv1d.weight": (0, mixed),
        "conv1d.bias": (0, mixed),
        "dt_bias": (0, heads),
        "A_log": (0, heads),
        "D": (0, heads),
        "norm.weight": (0, inner),
        "out_proj.weight": (1, inner),
    }
