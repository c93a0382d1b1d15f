"""Which smaller architectures there are, which of them fit a budget, and which look best.

All combinations of widths and depth are looked at, in a few tensor operations: costs and expected
damage both add up over blocks. Damage is counted in nats: skipping a block altogether costs so
much, and a block that loses a share of what it writes is expected to cost that share of it. It only
ranks; the best are cut and measured (as in MiniPuzzle: Nemotron-H, arXiv 2504.03624, section 4.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES, Axis
from hybridize.compress.prune.axes.base import BlockAxis
from hybridize.compress.prune.budget import Budget
from hybridize.compress.prune.scores import Scores
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes

DEPTH = "depth"
_MOST_STEPS = 9  # sizes of an axis; fewer where there would be too many combinations
_LEAST_STEPS = 2
_LEAST_SHARE = 0.25
_MOST_DROPPED = 0.6
_MOST_CANDIDATES = 20_000_000


@dataclass(frozen=True)
class Candidate:
    """An architecture within the budget.

    Attributes:
        architecture: what it is.
        damage: what it is expected to cost, in nats per token; good for comparing.
    """

    architecture: Architecture
    damage: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        candidates: the best, best first.
        looked_at: how many there were.
        fitting: how many of them fit the budget.
    """

    candidates: tuple[Candidate, ...]
    looked_at: int
    fitting: int


def search(
    config: HybridConfig,
    scores: Scores,
    budgets: Sequence[Budget],
    axes: Sequence[str],
    *,
    best: int,
    multiple_of: int | None = None,
    blocks_per_layer: int = 1,
) -> Found:
    """Return the most promising architectures that every budget allows.

    Args:
        config: the model.
        scores: of its parts.
        budgets: all have to be met.
        axes: which may be used: names of `AXES` and ``depth``.
        best: how many to return.
        multiple_of: what wide sizes are multiples of; a sixteenth of the size, about, if None.
        blocks_per_layer: how many blocks leave together.

    Raises:
        InputError: no architecture meets the budgets.
    """
    steps = _MOST_STEPS
    space = _Space(config, scores, axes, multiple_of, blocks_per_layer, steps)
    while space.size > _MOST_CANDIDATES and steps > _LEAST_STEPS:
        steps -= 1
        space = _Space(config, scores, axes, multiple_of, blocks_per_layer, steps)
    if space.size > _MOST_CANDIDATES:
        raise InputError(f"--axes: {space.size:,} combinations; leave some axes out")
    damage = space.damage()
    fits = torch.ones_like(damage, dtype=torch.bool)
    for budget in budgets:
        costs = space.costs(budget)
        fits &= costs <= budget.limit
        if not bool(fits.any()):
            raise InputError(
                f"no model along {', '.join(axes)} stays within {budget.in_words(budget.limit)}; "
                f"the smallest there is: {budget.in_words(float(costs.min()))}"
            )
    ranked = damage.masked_fill(~fits, math.inf).flatten()
    values, places = ranked.topk(min(best, int(fits.sum())), largest=False)
    found = (
        Candidate(space.architecture(int(place)), float(value))
        for value, place in zip(values, places, strict=True)
    )
    return Found(tuple(found), damage.numel(), int(fits.sum()))


def layers(config: HybridConfig, blocks_per_layer: int) -> list[tuple[int, ...]]:
    """Return the blocks that leave together, in their order."""
    places = range(len(config.blocks))
    return [tuple(places[i : i + blocks_per_layer]) for i in places[::blocks_per_layer]]


class _Space:
    """All architectures: a dimension for the hidden size, one for depth, one for each kind."""

    def __init__(
        self,
        config: HybridConfig,
        scores: Scores,
        axes: Sequence[str],
        multiple_of: int | None,
        blocks_per_layer: int,
        steps: int,
    ) -> None:
        self._config, self._scores = config, scores
        self._hidden = options("hidden", config, multiple_of, steps) if "hidden" in axes else []
        self._hidden = self._hidden or [config.hidden_size]
        together = layers(config, blocks_per_layer)
        costs = [sum(float(scores.blocks[place]) for place in layer) for layer in together]
        order = sorted(range(len(together)), key=costs.__getitem__)
        most = int(len(together) * _MOST_DROPPED) if DEPTH in axes else 0
        self._dropped = [
            tuple(sorted(place for layer in order[:count] for place in together[layer]))
            for count in range(most + 1)
        ]
        self._left = torch.ones(len(self._dropped), len(config.blocks), dtype=torch.float64)
        for row, places in zip(self._left, self._dropped, strict=True):
            row[list(places)] = 0
        self._shares: dict[tuple[str, int], torch.Tensor] = {}
        self._kinds: list[tuple[type[BlockSizes], list[dict[str, int]]]] = []
        for kind in (MLPSizes, AttentionSizes, MambaSizes):
            names = [
                name
                for name, axis in AXES.items()
                if isinstance(axis, BlockAxis) and axis.kind is kind and name in axes
            ]
            names = [name for name in names if AXES[name].places(config)]
            choices = [options(name, config, multiple_of, steps) for name in names]
            combinations = [dict(zip(names, chosen, strict=True)) for chosen in product(*choices)]
            self._kinds.append((kind, combinations))
        self._shape = (
            len(self._hidden),
            len(self._dropped),
            *(len(combinations) for _, combinations in self._kinds),
        )

    @property
    def size(self) -> int:
        """How many there are."""
        return math.prod(self._shape)

    def architecture(self, place: int) -> Architecture:
        """Return one of them by its place in the flattened tensors."""
        where = [int(index) for index in torch.unravel_index(torch.tensor(place), self._shape)]
        widths = {"hidden": self._hidden[where[0]]}
        for (_, combinations), index in zip(self._kinds, where[2:], strict=True):
            widths |= combinations[index]
        return Architecture(
            {
                name: count
                for name, count in widths.items()
                if count != AXES[name].count(self._config)
            },
            self._dropped[where[1]],
        )

    def costs(self, budget: Budget) -> torch.Tensor:
        """Return what each costs."""
        rest = [budget.of_rest(self._config, hidden) for hidden in self._hidden]
        total = torch.tensor(rest, dtype=torch.float64).view(-1, *[1] * (len(self._shape) - 1))
        for number, (kind, combinations) in enumerate(self._kinds):
            table = torch.zeros(*self._shape[:2], len(combinations), dtype=torch.float64)
            kinds = {sizes for sizes in self._config.blocks if isinstance(sizes, kind)}
            for sizes in kinds:
                left = self._left @ torch.tensor(
                    [float(block == sizes) for block in self._config.blocks], dtype=torch.float64
                )
                costs = [
                    [budget.of_block(_narrowed(sizes, widths), hidden) for widths in combinations]
                    for hidden in self._hidden
                ]
                table += torch.tensor(costs, dtype=torch.float64)[:, None] * left[None, :, None]
            total = total + self._spread(table, number)
        return total

    def damage(self) -> torch.Tensor:
        """Return what each is expected to lose."""
        blocks = self._scores.blocks.clamp(min=0).double()
        total = ((1 - self._left) @ blocks).view(1, -1, *[1] * (len(self._shape) - 2))
        whole = float(blocks.sum())
        hidden = [
            AXES["hidden"].lost(self._scores.units["hidden"][-1], count) * whole
            if count != self._config.hidden_size
            else 0.0
            for count in self._hidden
        ]
        total = total + torch.tensor(hidden, dtype=torch.float64).view(
            -1, *[1] * (len(self._shape) - 1)
        )
        for number, (_, combinations) in enumerate(self._kinds):
            lost = [sum(self._lost(*chosen) for chosen in c.items()) for c in combinations]
            shares = torch.stack([torch.zeros(len(blocks)).double() + one for one in lost], 1)
            table = self._left @ (shares.clamp(max=1) * blocks[:, None])
            total = total + self._spread(table[None], number)
        return total.expand(self._shape)

    def _lost(self, name: str, count: int) -> torch.Tensor:
        """Return which share of each block's output an axis costs, ``(blocks,)``."""
        if (name, count) not in self._shares:
            lost = torch.zeros(len(self._config.blocks), dtype=torch.float64)
            for place, units in self._scores.units[name].items():
                lost[place] = AXES[name].lost(units, count)
            self._shares[name, count] = lost
        return self._shares[name, count]

    def _spread(self, table: torch.Tensor, kind: int) -> torch.Tensor:
        """Put ``(hidden, depth, combinations of a kind)`` into its dimensions."""
        after = len(self._kinds) - 1 - kind
        return table.view(*table.shape[:2], *[1] * kind, -1, *[1] * after)


def _narrowed(sizes: BlockSizes, widths: dict[str, int]) -> BlockSizes:
    for name, count in widths.items():
        axis = AXES[name]
        assert isinstance(axis, BlockAxis)
        sizes = axis.with_units(sizes, count)
    return sizes


def options(
    name: str, config: HybridConfig, multiple_of: int | None, most: int = _MOST_STEPS
) -> list[int]:
    """Return the sizes to try along an axis, the model's own first.

    Args:
        name: of the axis.
        config: the model.
        multiple_of: see `search`.
        most: how many at most, spread over all there are.
    """
    axis = AXES[name]
    full, step = axis.count(config), step_of(axis, config, multiple_of)
    sizes = [
        size
        for size in range(full - full % step, 0, -step)
        if size >= full * _LEAST_SHARE and axis.possible(config, size)
    ]
    sizes = [full, *(size for size in sizes if size != full)]
    every = max(1, math.ceil(len(sizes) / most))
    return sizes[::every]


def step_of(axis: Axis, config: HybridConfig, multiple_of: int | None) -> int:
    """Return what an axis's sizes are multiples of; see `search`.

    If nothing was asked for: a power of two that kernels like, about a sixteenth of the size.
    """
    full = axis.count(config)
    if axis.rounded:
        return multiple_of or min(256, 1 << max(0, int(math.log2(max(1, full / 16)))))
    if axis.name in ("mamba-channels", "mamba-state"):
        return max(1, full // 8)
    sizes = config.blocks[axis.places(config)[0]]
    if isinstance(sizes, MambaSizes) and sizes.num_heads != sizes.n_groups:
        return sizes.n_groups
    return 1
