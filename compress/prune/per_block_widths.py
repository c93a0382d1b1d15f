"""Different widths for blocks of one kind: each block keeps its most important units.

Together, the blocks keep no more units than in the uniform architecture, so budgets are still met.
"""

from dataclasses import replace
from typing import Any

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import Axis
from hybridize.compress.prune.scores import Scores
from hybridize.modeling.model_spec import ModelSpec


def vary_widths(
    architecture: Architecture, config: ModelSpec, scores: Scores, multiple_of: int | None
) -> Architecture:
    """Return the architecture with its units redistributed over the blocks.

    Units are removed one increment at a time, each time from the block with the least expected
    loss. Within a block, the loss per unit grows with every increment, because the least important
    units are removed first. The greedy choice is therefore optimal.

    Args:
        architecture: the uniform one: all blocks of a kind have the same width.
        config: the model.
        scores: the importance of its parts.
        multiple_of: see `Axis.increment`.
    """
    per_block = {}
    for name, axis in AXES.items():
        if not axis.varies_per_block or name not in architecture.widths:
            continue
        blocks = [i for i in axis.blocks(config) if i not in architecture.dropped]
        sizes = axis.first_sizes(config)
        increment = axis.increment(sizes, multiple_of)
        if not blocks or increment > architecture.widths[name]:
            continue
        counts = dict.fromkeys(blocks, axis.count(sizes))
        target = architecture.widths[name] * len(blocks)
        while sum(counts.values()) > target:
            smaller = {i: _next_multiple(count, increment) for i, count in counts.items()}
            loss_per_unit = {
                i: _loss(axis, scores, i, counts[i], count) / (counts[i] - count)
                for i, count in smaller.items()
                if count >= increment and axis.allows(sizes, count)
            }
            cheapest = min(loss_per_unit, key=loss_per_unit.__getitem__)
            counts[cheapest] = smaller[cheapest]
        if len(set(counts.values())) > 1:
            per_block[name] = counts
    widths = {name: n for name, n in architecture.widths.items() if name not in per_block}
    return replace(architecture, widths=widths, per_block=per_block)


def _next_multiple(count: int, increment: int) -> int:
    """Return the next smaller multiple of an increment."""
    return (count - 1) // increment * increment


def _loss(axis: Axis[Any], scores: Scores, block_idx: int, before: int, after: int) -> float:
    """Return the expected damage when the width of a block is reduced further."""
    units = scores.units[axis.name][block_idx]
    share = axis.lost_share(units, after) - axis.lost_share(units, before)
    return share * max(0.0, float(scores.blocks[block_idx]))
