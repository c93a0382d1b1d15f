"""The search over all smaller architectures: those within the budgets, ranked by expected damage.

All combinations of widths and depth are evaluated with a few tensor operations, because costs and
expected damage are sums over blocks. The damage is in nats. A block that is removed costs what
skipping it costs. A block that loses a share of its output is expected to cost the same share of
that. The estimate only ranks architectures. The best ones are then cut and measured, as in
MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4.2).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES, DEPTH
from hybridize.compress.prune.axes.base import WHOLE_MODEL, Axis
from hybridize.compress.prune.budget import Budget
from hybridize.compress.prune.scores import Scores
from hybridize.errors import InputError
from hybridize.modeling.layers.kinds import ATTENTION, LAYER_KINDS, MAMBA, MLP
from hybridize.modeling.layers.sizes import BlockSizes
from hybridize.modeling.model_spec import ModelSpec

_MAX_SIZES_PER_AXIS = 9  # fewer if there would be too many combinations
_MIN_SIZES_PER_AXIS = 2
_MIN_WIDTH_SHARE = 0.25
_MAX_DROPPED_SHARE = 0.6
_MAX_ARCHITECTURES = 20_000_000

Widths = dict[str, int]
"""By axis name, the number of units."""


@dataclass(frozen=True)
class RatedArchitecture:
    """An architecture within the budgets.

    Attributes:
        architecture: its sizes.
        damage: the expected KL divergence in nats per token; use it only to compare.
    """

    architecture: Architecture
    damage: float


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        best: the architectures with the least damage, in ascending order.
        considered: the number of architectures in the search space.
        fitting: the number of them that meet the budgets.
    """

    best: tuple[RatedArchitecture, ...]
    considered: int
    fitting: int


def search(
    config: ModelSpec,
    scores: Scores,
    budgets: Sequence[Budget],
    axes: Sequence[str],
    *,
    count: int,
    multiple_of: int | None = None,
    blocks_per_layer: int = 1,
) -> SearchResult:
    """Return the architectures with the least expected damage that meet all budgets.

    Args:
        config: the model.
        scores: the importance of its parts.
        budgets: all must be met.
        axes: names of the axes to search along; see `axis_names`.
        count: the number of architectures to return.
        multiple_of: see `Axis.increment`.
        blocks_per_layer: the number of blocks that are removed together.

    Raises:
        InputError: no architecture meets the budgets.
    """
    sizes_per_axis = _MAX_SIZES_PER_AXIS
    space = _Space(config, scores, axes, multiple_of, blocks_per_layer, sizes_per_axis)
    while space.size > _MAX_ARCHITECTURES and sizes_per_axis > _MIN_SIZES_PER_AXIS:
        sizes_per_axis -= 1
        space = _Space(config, scores, axes, multiple_of, blocks_per_layer, sizes_per_axis)
    if space.size > _MAX_ARCHITECTURES:
        raise InputError(f"`axes`: {space.size:,} combinations are too many; leave some axes out")
    damage = space.damage()
    fits = torch.ones_like(damage, dtype=torch.bool)
    for budget in budgets:
        costs = space.costs(budget)
        fits &= costs <= budget.limit
        if not bool(fits.any()):
            raise InputError(
                f"no model within {budget.describe(budget.limit)} can be cut along "
                f"{', '.join(axes)}; the smallest has {budget.describe(float(costs.min()))}"
            )
    fitting = int(fits.sum())
    ranked = damage.masked_fill(~fits, math.inf).flatten()
    values, indices = ranked.topk(min(count, fitting), largest=False)
    best = (
        RatedArchitecture(space.architecture(int(index)), float(value))
        for value, index in zip(values, indices, strict=True)
    )
    return SearchResult(tuple(best), damage.numel(), fitting)


def layers(config: ModelSpec, blocks_per_layer: int) -> list[tuple[int, ...]]:
    """Return the indices of the blocks of each layer. A layer is removed as a whole."""
    indices = range(len(config.blocks))
    return [tuple(indices[i : i + blocks_per_layer]) for i in indices[::blocks_per_layer]]


def block_kinds() -> list[type[BlockSizes]]:
    """Return the class of sizes of each kind of block.

    Of two architectures with equal damage, the order decides which one comes first.
    """
    letters = dict.fromkeys((MLP, ATTENTION, MAMBA, *LAYER_KINDS))
    return [LAYER_KINDS[letter].sizes_class() for letter in letters]


def axes_of(
    kind: type[BlockSizes] | None, names: Sequence[str], config: ModelSpec
) -> Iterator[Axis[Any]]:
    """Yield the axes of one kind of block, or of the whole model, that a search may use.

    Args:
        kind: the class of the blocks' sizes; None for axes of the whole model.
        names: the axes to choose from.
        config: the model, which must have such units.
    """
    for name, axis in AXES.items():
        if name in names and axis.block_kind is kind and axis.blocks(config):
            yield axis


def widths_to_try(
    axis: Axis[Any],
    config: ModelSpec,
    multiple_of: int | None,
    maximum: int = _MAX_SIZES_PER_AXIS,
) -> list[int]:
    """Return the numbers of units to try along an axis, in descending order from the model's own.

    Args:
        axis: the axis.
        config: the model.
        multiple_of: see `Axis.increment`.
        maximum: the maximum number of sizes; they are evenly spaced.
    """
    sizes = axis.first_sizes(config)
    full, increment = axis.count(sizes), axis.increment(sizes, multiple_of)
    smaller = [
        count
        for count in range(full - full % increment, 0, -increment)
        if count != full and count >= full * _MIN_WIDTH_SHARE and axis.allows(sizes, count)
    ]
    counts = [full, *smaller]
    return counts[:: max(1, math.ceil(len(counts) / maximum))]


class _Space:
    """The search space: all architectures.

    Tables of costs and damage have these dimensions: the widths of the axes of the whole model, the
    number of removed layers, and the combinations of widths for each of the `block_kinds`.
    """

    def __init__(
        self,
        config: ModelSpec,
        scores: Scores,
        axes: Sequence[str],
        multiple_of: int | None,
        blocks_per_layer: int,
        sizes_per_axis: int,
    ) -> None:
        self._config, self._scores = config, scores

        def combinations(kind: type[BlockSizes] | None) -> list[Widths]:
            of_kind = list(axes_of(kind, axes, config))
            widths = [widths_to_try(axis, config, multiple_of, sizes_per_axis) for axis in of_kind]
            names = [axis.name for axis in of_kind]
            return [dict(zip(names, chosen, strict=True)) for chosen in product(*widths)]

        # The first combination of each list is the uncut one.
        self._model_widths = combinations(None)
        self._hidden_sizes = [self._hidden_size(widths) for widths in self._model_widths]
        self._kinds = [(kind, combinations(kind)) for kind in block_kinds()]
        self._dropped = self._choose_dropped(DEPTH in axes, blocks_per_layer)
        # (choices of depth, blocks): 1 if the block is kept
        self._kept = torch.ones(len(self._dropped), len(config.blocks), dtype=torch.float64)
        for row, blocks in zip(self._kept, self._dropped, strict=True):
            row[list(blocks)] = 0
        self._lost_shares: dict[tuple[str, int], torch.Tensor] = {}
        self._shape = (
            len(self._model_widths),
            len(self._dropped),
            *(len(widths) for _, widths in self._kinds),
        )

    @property
    def size(self) -> int:
        """The number of architectures."""
        return math.prod(self._shape)

    def architecture(self, index: int) -> Architecture:
        """Return an architecture by its index in the flattened tables."""
        model_choice, depth, *kind_choices = (
            int(i) for i in torch.unravel_index(torch.tensor(index), self._shape)
        )
        widths, uncut = dict(self._model_widths[model_choice]), dict(self._model_widths[0])
        for (_, combinations), i in zip(self._kinds, kind_choices, strict=True):
            widths |= combinations[i]
            uncut |= combinations[0]
        changed = {name: count for name, count in widths.items() if count != uncut[name]}
        return Architecture(changed, self._dropped[depth])

    def costs(self, budget: Budget) -> torch.Tensor:
        """Return the cost of each architecture."""
        rest = [budget.rest_cost(self._config, hidden) for hidden in self._hidden_sizes]
        total = torch.tensor(rest, dtype=torch.float64).view(-1, *[1] * (len(self._shape) - 1))
        for number, (kind, combinations) in enumerate(self._kinds):
            table = torch.zeros(*self._shape[:2], len(combinations), dtype=torch.float64)
            for sizes in {block for block in self._config.blocks if isinstance(block, kind)}:
                kept_count = self._kept @ torch.tensor(
                    [float(block == sizes) for block in self._config.blocks], dtype=torch.float64
                )
                costs = [
                    [budget.block_cost(_resized(sizes, widths), hidden) for widths in combinations]
                    for hidden in self._hidden_sizes
                ]
                costs_of_one = torch.tensor(costs, dtype=torch.float64)
                table += costs_of_one[:, None] * kept_count[None, :, None]
            total = total + self._broadcast(table, number)
        return total

    def damage(self) -> torch.Tensor:
        """Return the expected damage of each architecture."""
        blocks = self._scores.blocks.clamp(min=0).double()
        total = ((1 - self._kept) @ blocks).view(1, -1, *[1] * (len(self._shape) - 2))
        whole = float(blocks.sum())
        model_damage = [
            sum(self._lost_share_of_model(*width) * whole for width in widths.items())
            for widths in self._model_widths
        ]
        total = total + torch.tensor(model_damage, dtype=torch.float64).view(
            -1, *[1] * (len(self._shape) - 1)
        )
        for number, (_, combinations) in enumerate(self._kinds):
            lost = [sum(self._lost_share(*w) for w in widths.items()) for widths in combinations]
            shares = torch.stack([torch.zeros(len(blocks)).double() + one for one in lost], 1)
            table = self._kept @ (shares.clamp(max=1) * blocks[:, None])
            total = total + self._broadcast(table[None], number)
        return total.expand(self._shape)

    def _hidden_size(self, widths: Widths) -> int:
        config = self._config
        for name, count in widths.items():
            config = AXES[name].resize_in(config, {WHOLE_MODEL: count})
        return config.hidden_size

    def _choose_dropped(self, depth: bool, blocks_per_layer: int) -> list[tuple[int, ...]]:
        """Return the blocks to remove: none, then those of the least important layer, and so on."""
        blocks_of = layers(self._config, blocks_per_layer)
        costs = [sum(float(self._scores.blocks[i]) for i in layer) for layer in blocks_of]
        order = sorted(range(len(blocks_of)), key=costs.__getitem__)
        max_dropped = int(len(blocks_of) * _MAX_DROPPED_SHARE) if depth else 0
        return [
            tuple(sorted(i for layer in order[:count] for i in blocks_of[layer]))
            for count in range(max_dropped + 1)
        ]

    def _lost_share_of_model(self, name: str, count: int) -> float:
        """Return the share of the residual stream that a width of the whole model loses."""
        if count == self._model_widths[0][name]:
            return 0.0
        return AXES[name].lost_share(self._scores.units[name][WHOLE_MODEL], count)

    def _lost_share(self, name: str, count: int) -> torch.Tensor:
        """Return the share of each block's output that a width loses, ``(blocks,)``."""
        if (name, count) not in self._lost_shares:
            lost = torch.zeros(len(self._config.blocks), dtype=torch.float64)
            for block_idx, units in self._scores.units[name].items():
                lost[block_idx] = AXES[name].lost_share(units, count)
            self._lost_shares[name, count] = lost
        return self._lost_shares[name, count]

    def _broadcast(self, table: torch.Tensor, number: int) -> torch.Tensor:
        """Move the last dimension of a table to the dimension of a kind of block.

        Args:
            table: ``(widths of the model, depth, combinations of the kind)``.
            number: the kind's position in `block_kinds`.
        """
        after = len(self._kinds) - 1 - number
        return table.view(*table.shape[:2], *[1] * number, -1, *[1] * after)


def _resized(sizes: BlockSizes, widths: Widths) -> BlockSizes:
    for name, count in widths.items():
        sizes = AXES[name].resize(sizes, count)
    return sizes
