"""Widths of each block's own: the same number of units, left where they are worth the most.

What blocks have together is no more than the search found, so that its budgets hold.
"""

from dataclasses import replace

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import BlockAxis
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import step_of
from hybridize.modeling.config import HybridConfig

SPREADABLE = ("ffn", "attention", "mamba-heads")
"""Axes of whole units, each the last of its kind of block, so that none comes after it."""


def spread(
    architecture: Architecture, config: HybridConfig, scores: Scores, multiple_of: int | None
) -> Architecture:
    """Return an architecture with its narrowed axes spread over the blocks anew.

    Units leave one step at a time, each from the block that is expected to miss it the least.
    Since a block's least units leave first, its losses only grow, and so no other distribution
    is expected to do better.

    Args:
        architecture: with the same width in all blocks.
        config: the model.
        scores: of its parts.
        multiple_of: the steps, see `search`.
    """
    single = {}
    for name in SPREADABLE:
        axis = AXES[name]
        assert isinstance(axis, BlockAxis)
        if name not in architecture.widths:
            continue
        places = [p for p in axis.places(config) if p not in architecture.dropped]
        full, step = axis.count(config), step_of(axis, config, multiple_of)
        if not places or step > architecture.widths[name]:
            continue
        left = dict.fromkeys(places, full)
        target = architecture.widths[name] * len(places)
        while sum(left.values()) > target:
            lesser = {place: _next_width(count, step) for place, count in left.items()}
            worth = {
                place: _missed(axis, scores, place, left[place], width) / (left[place] - width)
                for place, width in lesser.items()
                if width >= step and axis.possible(config, width)
            }
            least = min(worth, key=worth.__getitem__)
            left[least] = lesser[least]
        if len(set(left.values())) > 1:
            single[name] = left
    widths = {name: n for name, n in architecture.widths.items() if name not in single}
    return replace(architecture, widths=widths, single=single)


def _next_width(width: int, step: int) -> int:
    """Return the next smaller multiple of a step."""
    return (width - 1) // step * step


def _missed(axis: BlockAxis, scores: Scores, place: int, before: int, after: int) -> float:
    """Return what a block is expected to lose on the way from one width to a lesser one."""
    units = scores.units[axis.name][place]
    share = axis.lost(units, after) - axis.lost(units, before)
    return share * max(0.0, float(scores.blocks[place]))
