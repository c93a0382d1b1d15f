"""Attention blocks: query heads of a KV head, and whole KV heads."""

from dataclasses import replace

import torch
from typing_extensions import override

from hybridize.compress.prune.axes.base import ActivationStats, Axis, Slices, rows_of
from hybridize.modeling.layers.sizes import AttentionSizes


def _queries_per_kv_head(sizes: AttentionSizes) -> int:
    return sizes.num_heads // sizes.num_kv_heads


class QueryHeads(Axis[AttentionSizes]):
    """A unit is one query head of a KV head. Every KV head keeps the same number of them."""

    unit = "query heads per KV head"
    block_kind = AttentionSizes

    @override
    def count(self, sizes: AttentionSizes) -> int:
        return _queries_per_kv_head(sizes)

    @override
    def resize(self, sizes: AttentionSizes, count: int) -> AttentionSizes:
        return replace(sizes, num_heads=sizes.num_kv_heads * count)

    @override
    def score(self, sizes: AttentionSizes, stats: ActivationStats) -> torch.Tensor:
        # (num_kv_heads, query heads per KV head, head_dim)
        heads = stats.output.view(sizes.num_kv_heads, self.count(sizes), sizes.head_dim)
        return heads.sum(-1)

    @override
    def slices(self, sizes: AttentionSizes, kept: torch.Tensor) -> Slices:
        heads = (torch.arange(sizes.num_kv_heads)[:, None] * self.count(sizes) + kept).flatten()
        rows = rows_of(heads, sizes.head_dim)
        return {"q_proj.weight": (0, rows), "q_proj.bias": (0, rows), "o_proj.weight": (1, rows)}


class KVHeads(Axis[AttentionSizes]):
    """A unit is one KV head with all of its query heads."""

    unit = "KV heads"
    block_kind = AttentionSizes
    varies_per_block = True

    @override
    def count(self, sizes: AttentionSizes) -> int:
        return sizes.num_kv_heads

    @override
    def resize(self, sizes: AttentionSizes, count: int) -> AttentionSizes:
        return replace(sizes, num_kv_heads=count, num_heads=count * _queries_per_kv_head(sizes))

    @override
    def score(self, sizes: AttentionSizes, stats: ActivationStats) -> torch.Tensor:
        return stats.output.view(sizes.num_kv_heads, -1).sum(-1)  # (num_kv_heads,)

    @override
    def slices(self, sizes: AttentionSizes, kept: torch.Tensor) -> Slices:
        kv_rows = rows_of(kept, sizes.head_dim)
        query_rows = rows_of(kept, _queries_per_kv_head(sizes) * sizes.head_dim)
        slices: Slices = {"o_proj.weight": (1, query_rows)}
        for name, rows in (("q_proj", query_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)):
            slices |= {f"{name}.weight": (0, rows), f"{name}.bias": (0, rows)}
        return slices
