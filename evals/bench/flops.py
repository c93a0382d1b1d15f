"""The number of operations in a prefill and in a decoding step, from a model's configuration."""

from math import prod

from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model_spec import ModelSpec

CHUNK = 256  # chunk length of the state-space scan in tokens, as in state-spaces/mamba


def prefill_flops(config: ModelSpec, length: int) -> float:
    """Return the operations for one prompt of ``length`` tokens.

    Counted are two operations per weight and token, attention, and the scan. For each token, the
    scan multiplies C with B, and the result with x, over half a chunk on average. It also writes
    and reads the state once (Dao & Gu 2024, arXiv 2405.21060, section 6).
    """
    total = 2.0 * length * _matrix_weights(config) + 2 * config.hidden_size * config.vocab_size
    for block in config.blocks:
        if isinstance(block, AttentionSizes):
            window = min(length, block.sliding_window or length)
            pairs = length * window - window * (window - 1) / 2
            total += 4 * pairs * block.num_heads * block.head_dim
        elif isinstance(block, MambaSizes):
            within = CHUNK / 2 * 2 * (block.n_groups * block.d_state + block.d_inner)
            total += length * (within + 4 * block.d_inner * block.d_state)
    return total


def decode_flops(config: ModelSpec, context: int) -> float:
    """Return the operations for one new token of one sequence after ``context`` tokens."""
    total = 2.0 * (_matrix_weights(config) + config.hidden_size * config.vocab_size)
    for block in config.blocks:
        if isinstance(block, AttentionSizes):
            visible = min(context, block.sliding_window or context)
            total += 4 * visible * block.num_heads * block.head_dim
        elif isinstance(block, MambaSizes):
            total += 6 * block.d_inner * block.d_state
    return total


def _matrix_weights(config: ModelSpec) -> int:
    """Return the number of weights in the blocks' matrices, which every token is multiplied by."""
    hidden = config.hidden_size
    shapes = [shape for block in config.blocks for shape in block.shapes(hidden).values()]
    return sum(prod(shape) for shape in shapes if len(shape) == 2)
