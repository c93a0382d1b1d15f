"""The heads of attention blocks: query heads within their groups, and whole groups."""

from dataclasses import replace
from typing import ClassVar

import torch

from hybridize.compress.prune.axes.base import BlockAxis, Seen, Slices, spans
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes


class Queries(BlockAxis):
    """A unit is a query head of a KV head: as many leave every KV head, each its own least."""

    name = "attention-queries"
    unit = "query heads per KV head"
    kind: ClassVar[type[BlockSizes]] = AttentionSizes

    def units(self, sizes: BlockSizes) -> int:
        """See `BlockAxis.units`."""
        assert isinstance(sizes, AttentionSizes)
        return sizes.num_heads // sizes.num_kv_heads

    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """See `BlockAxis.with_units`."""
        assert isinstance(sizes, AttentionSizes)
        return replace(sizes, num_heads=sizes.num_kv_heads * count)

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(kv_heads, query heads of each)``."""
        sizes = config.blocks[place]
        assert isinstance(sizes, AttentionSizes)
        return seen.output.view(sizes.num_kv_heads, self.units(sizes), sizes.head_dim).sum(-1)

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`; ``kept`` is ``(kv_heads, count)``."""
        sizes = config.blocks[place]
        assert isinstance(sizes, AttentionSizes)
        heads = (torch.arange(sizes.num_kv_heads)[:, None] * self.units(sizes) + kept).flatten()
        rows = spans(heads, sizes.head_dim)
        return {"q_proj.weight": (0, rows), "q_proj.bias": (0, rows), "o_proj.weight": (1, rows)}


class Groups(BlockAxis):
    """A unit is a KV head with all of its query heads."""

    name = "attention"
    unit = "KV heads"
    kind: ClassVar[type[BlockSizes]] = AttentionSizes

    def units(self, sizes: BlockSizes) -> int:
        """See `BlockAxis.units`."""
        assert isinstance(sizes, AttentionSizes)
        return sizes.num_kv_heads

    def with_units(self, sizes: BlockSizes, count: int) -> BlockSizes:
        """See `BlockAxis.with_units`."""
        assert isinstance(sizes, AttentionSizes)
        return replace(
            sizes, num_kv_heads=count, num_heads=count * (sizes.num_heads // sizes.num_kv_heads)
        )

    def scores(self, config: HybridConfig, place: int, seen: Seen) -> torch.Tensor:
        """See `Axis.scores`; ``(kv_heads,)``."""
        return seen.output.view(self.units(config.blocks[place]), -1).sum(-1)

    def slices(self, config: HybridConfig, place: int, kept: torch.Tensor) -> Slices:
        """See `Axis.slices`."""
        sizes = config.blocks[place]
        assert isinstance(sizes, AttentionSizes)
        keys = spans(kept, sizes.head_dim)
        queries = spans(kept, sizes.num_heads // sizes.num_kv_heads * sizes.head_dim)
        changed: Slices = {"o_proj.weight": (1, queries)}
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            changed |= {f"{name}.weight": (0, rows), f"{name}.bias": (0, rows)}
        return changed
