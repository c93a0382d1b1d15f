"""Plans a pruning from a configuration alone, for a model without weights."""

from pathlib import Path

import torch

from hybridize.checkpoints.dtypes import itemsize, torch_dtype
from hybridize.checkpoints.published_models import find_shape, published
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import WHOLE_MODEL, ActivationStats, last_linear
from hybridize.compress.prune.budget import Parameters
from hybridize.compress.prune.budget_options import requested_budgets
from hybridize.compress.prune.config import PruneConfig
from hybridize.compress.prune.ranking import Ranker
from hybridize.compress.prune.results import PruningResult
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import search
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import BlockSizes, MambaSizes
from hybridize.modeling.model_spec import ModelSpec

_DEFAULT_DTYPE = "bfloat16"  # the usual dtype of large checkpoints


def needs_weights(model: str | Path, options: PruneConfig) -> bool:
    """Return whether `prune` reads weights, and does not plan from a configuration alone.

    A config.json and a published shape have no weights. Those of a hub id are not downloaded for a
    dry run that no option asks to measure.
    """
    path = Path(model)
    if path.exists():
        return path.is_dir() and not (
            (path / "config.json").is_file() and not list(path.glob("*.safetensors*"))
        )
    measures = (
        options.scores is not None
        or options.widths == "per-block"
        or options.calibration != PruneConfig.calibration
    )
    return published(str(model)) is None and (measures or not options.dry_run)


def plan_without_weights(
    model: str | Path, output: Path, options: PruneConfig, device: torch.device
) -> PruningResult:
    """Search as `prune` does, with equal importance for all blocks and all units.

    The result shows which shapes meet a budget and what they cost, not which parts to remove.

    Args:
        model: see `find_shape`.
        output: the directory that would be written.
        options: the options of `prune`; the calibration text is not used.
        device: the device to time blocks on.

    Raises:
        InputError: an option needs weights, or no architecture meets the budgets.
    """
    if not options.dry_run:
        raise InputError(f"{model}: has no weights; only `dry_run` works without them")
    if options.widths == "per-block":
        raise InputError(f"`widths=per-block` needs weights, and {model} has none")
    if options.scores is not None:
        raise InputError(f"`scores={options.scores}` needs weights, and {model} has none")
    format_, config = find_shape(model)
    source_dtype = config.dtype or _DEFAULT_DTYPE
    dtype = source_dtype if options.dtype == "auto" else options.dtype
    element_size = itemsize(dtype)
    scores = equal_scores(config)
    budgets = requested_budgets(options, config, element_size, device, torch_dtype(dtype))
    found = search(
        config,
        scores,
        budgets,
        options.axes,
        count=options.candidates,
        multiple_of=options.multiple_of,
        blocks_per_layer=format_.names.blocks_per_layer,
    )
    ranker = Ranker(config, scores, format_, options.format, budgets)
    candidates = ranker.candidates(found.best, per_block=False, multiple_of=options.multiple_of)
    chosen, before = candidates[0], int(Parameters(0).cost(config))
    return PruningResult(
        source=Path(model),
        output=output,
        source_format=format_.name,
        format=chosen.format.name,
        reason=chosen.reason,
        notes=(
            f"{_why_not_measured(model)}, so all blocks and all units count as equally important: "
            "the plan shows which shapes fit the budget, not which parts to remove",
            *chosen.fit.notes,
        ),
        layout_before=config.layout,
        layout_after=chosen.config.layout,
        distilled_tokens=0,
        parameters_before=before,
        parameters_after=chosen.parameters,
        bytes_before=before * element_size,
        bytes_after=chosen.parameters * element_size,
        costs_before=tuple(budget.describe(budget.cost(config)) for budget in budgets),
        candidates=tuple(one.summary(chosen=one is chosen) for one in candidates),
        considered=found.considered,
        fitting=found.fitting,
        block_importance=None,
        step_seconds=None,
        dry_run=True,
    )


def _why_not_measured(model: str | Path) -> str:
    on_hub = not Path(model).exists() and published(str(model)) is None
    return "no weights were downloaded" if on_hub else "there are no weights"


def equal_scores(config: ModelSpec) -> Scores:
    """Return scores with equal importance for all blocks, and for all units of a block."""
    units: dict[str, dict[int, torch.Tensor]] = {}
    for name, axis in AXES.items():
        for block_idx in axis.blocks(config):
            stats = (
                ActivationStats(torch.ones(config.hidden_size))
                if block_idx == WHOLE_MODEL
                else _equal_stats(config.blocks[block_idx])
            )
            scores = axis.score(axis.sizes_in(config, block_idx), stats)
            units.setdefault(name, {})[block_idx] = scores
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


def _equal_stats(sizes: BlockSizes) -> ActivationStats:
    width = sizes.shapes(1)[f"{last_linear(sizes)}.weight"][1]
    state = None
    if isinstance(sizes, MambaSizes):
        state = torch.ones(sizes.n_groups * sizes.d_state)
    return ActivationStats(torch.ones(width), state)
