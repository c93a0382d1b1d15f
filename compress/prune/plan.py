"""What pruning would make of a model that is not at hand: sizes, from its configuration alone."""

from pathlib import Path

import torch

from hybridize.checkpoints.published_models import find_shape
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import Seen
from hybridize.compress.prune.budget import Parameters
from hybridize.compress.prune.ranking import Contest
from hybridize.compress.prune.results import PruningResult
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import search
from hybridize.compress.prune.settings import PruneSettings
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.devices import DTYPES
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes

_STORED = torch.bfloat16  # what large checkpoints come in


def plan(
    model: str | Path, output: Path, settings: PruneSettings, device: torch.device
) -> PruningResult:
    """Search as `prune` does, with all blocks and all units worth the same.

    That is enough to see which shapes meet a budget and what they cost, not which parts go.

    Args:
        model: see `find_shape`.
        output: what would be written.
        settings: see `PruneSettings`; text is not needed.
        device: where blocks are timed.
    """
    format_, config = find_shape(model)
    stored: torch.dtype = DTYPES.get(settings.dtype) or config.dtype or _STORED  # type: ignore[assignment]
    scores = even_scores(config)
    budgets = settings.budgets(config, stored.itemsize, device, stored)
    found = search(
        config,
        scores,
        budgets,
        settings.axes,
        best=settings.candidates,
        multiple_of=settings.multiple_of,
        blocks_per_layer=format_.names.blocks_per_layer,
    )
    contest = Contest(config, scores, format_, settings.format, budgets)
    entrants = contest.enter(found.candidates, per_block=False, multiple_of=settings.multiple_of)
    chosen, before = entrants[0], int(Parameters(0).of(config))
    return PruningResult(
        source=Path(model),
        output=output,
        source_format=format_.name,
        format=chosen.format.name,
        reason=chosen.reason,
        notes=(
            "there are no weights, so that all blocks and all units count as worth the same: this "
            "shows which shapes fit, not which parts go",
            *chosen.fit.notes,
        ),
        layout_before=config.layout,
        layout_after=chosen.config.layout,
        distilled_tokens=0,
        parameters_before=before,
        parameters_after=chosen.parameters,
        bytes_before=before * stored.itemsize,
        bytes_after=chosen.parameters * stored.itemsize,
        costs_before=tuple(budget.in_words(budget.of(config)) for budget in budgets),
        candidates=tuple(one.described(one is chosen) for one in entrants),
        looked_at=found.looked_at,
        fitting=found.fitting,
        block_importance=None,
        step_seconds=None,
        dry_run=True,
    )


def even_scores(config: HybridConfig) -> Scores:
    """Return scores by which all blocks, and all units of a block, are worth the same."""
    units: dict[str, dict[int, torch.Tensor]] = {}
    for name, axis in AXES.items():
        for place in axis.places(config):
            seen = _even(config.blocks[place] if place >= 0 else None, config.hidden_size)
            units.setdefault(name, {})[place] = axis.scores(config, place, seen)
    count = len(config.blocks)
    return Scores(
        units=units,
        blocks=torch.full((count,), 1 / count),
        influence=torch.zeros(count),
        stream=torch.ones(count + 1, config.hidden_size),
        gated={},
        source="",
        tokens=0,
    )


def _even(sizes: BlockSizes | None, hidden: int) -> Seen:
    if sizes is None:
        return Seen(torch.ones(hidden))
    if isinstance(sizes, MambaSizes):
        return Seen(torch.ones(sizes.d_inner), torch.ones(sizes.n_groups * sizes.d_state))
    if isinstance(sizes, AttentionSizes):
        return Seen(torch.ones(sizes.num_heads * sizes.head_dim))
    return Seen(torch.ones(sizes.intermediate_size))
