"""What running a model takes, worked out from its configuration alone."""

from dataclasses import dataclass

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes


@dataclass(frozen=True)
class CacheCost:
    """Bytes that one sequence's cache takes at a context length.

    Attributes:
        context: tokens.
        kv: keys and values, in the checkpoint's dtype.
        state: SSM states in float32 and convolution windows in the checkpoint's dtype.
    """

    context: int
    kv: int
    state: int


def cache_cost(config: HybridConfig, context: int, width: int) -> CacheCost:
    """Return what one sequence's cache takes.

    Args:
        config: the model.
        context: tokens.
        width: bytes per element of keys, values and convolution windows; states are float32.
    """
    costs = [block_cache_cost(block, context, width) for block in config.blocks]
    return CacheCost(context, sum(cost.kv for cost in costs), sum(cost.state for cost in costs))


def block_cache_cost(block: BlockSizes, context: int, width: int) -> CacheCost:
    """Return what one sequence's cache takes in one block; see `cache_cost`."""
    kv = state = 0
    if isinstance(block, AttentionSizes):
        tokens = min(context, (block.sliding_window or context + 1) - 1)
        kv = 2 * tokens * block.num_kv_heads * block.head_dim * width
    elif isinstance(block, MambaSizes):
        state = 4 * block.num_heads * block.head_dim * block.d_state
        state += (block.conv_kernel - 1) * block.conv_channels * width
    return CacheCost(context, kv, state)
