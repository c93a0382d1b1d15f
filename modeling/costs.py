"""The memory of a cache, computed from the configuration alone."""

from dataclasses import dataclass
from typing import Protocol

from hybridize.modeling.layers.sizes import BlockSizes


@dataclass(frozen=True)
class CacheCost:
    """Bytes of the cache of one sequence.

    Attributes:
        context: length of the sequence in tokens.
        kv: bytes of keys and values.
        state: bytes of SSM states and convolution states.
    """

    context: int
    kv: int
    state: int

    @property
    def total(self) -> int:
        """Bytes of the whole cache."""
        return self.kv + self.state


class HasBlocks(Protocol):
    """A description of a model: a `ModelSpec` or a `HybridConfig`."""

    @property
    def blocks(self) -> tuple[BlockSizes, ...]:
        """The sizes of every block, in order."""


def cache_cost(
    config: HasBlocks, context: int, itemsize: int, *, preallocated: bool = False
) -> CacheCost:
    """Return the memory of the cache of one sequence.

    Args:
        config: the model.
        context: length of the sequence in tokens.
        itemsize: bytes per element of keys, values and convolution states. SSM states are float32,
            or float64 if this is 8.
        preallocated: whether even attention with a sliding window has memory for all tokens, as in
            a `StaticHybridCache`.
    """
    costs = [
        block_cache_cost(block, context, itemsize, preallocated=preallocated)
        for block in config.blocks
    ]
    return CacheCost(context, sum(cost.kv for cost in costs), sum(cost.state for cost in costs))


def block_cache_cost(
    block: BlockSizes, context: int, itemsize: int, *, preallocated: bool = False
) -> CacheCost:
    """Return the memory of the cache of one sequence in one block; see `cache_cost`."""
    kv, state = block.cache_bytes(context, itemsize, preallocated=preallocated)
    return CacheCost(context, kv, state)
