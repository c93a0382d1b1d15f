"""`hybridize prune`: the best smaller model within a budget, cut out of a checkpoint.

After MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4) and Minitron-SSM (Taghibakhshi et al.
2025, arXiv 2504.11409): importance from forward passes, a search over whole architectures, and the
best of them cut in memory and measured. The winner is cut again from disk to disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridize.checkpoints import check_output
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.published_models import published
from hybridize.compress.prune.plan import plan
from hybridize.compress.prune.results import PruningResult
from hybridize.compress.prune.run import Run
from hybridize.compress.prune.settings import ALL_AXES, PruneSettings
from hybridize.errors import InputError
from hybridize.modeling.devices import choose_device


def prune(
    model: str | Path,
    output: str | Path,
    *,
    params: str | int | None = None,
    axes: Sequence[str] = ALL_AXES,
    calibration: str | Path | None = None,
    scores: str | Path | None = None,
    max_shard_size: int = 5_000_000_000,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> PruningResult:
    """Make a checkpoint smaller: hybrid or plain Transformer, in any format that hybridize reads.

    The cut is exact: what leaves are rows and columns, and norms are corrected for what they no
    longer see. Distill the result from the original to get back what it lost.

    Works in ``OUTPUT.prune`` beside the output and removes it in the end. A run that was killed
    goes on with ``resume``.

    Args:
        model: a directory or a hub id. For a dry run it may lack weights, or be a config.json or
            the name of a published shape: then all parts count as worth the same.
        output: the directory to write.
        params, axes, calibration: see `PruneSettings`.
        scores: a file with importance that was measured before; measured and written if it does
            not exist.
        max_shard_size: bytes per safetensors file.
        device: where to measure and train.
        resume: go on with a run that was interrupted.
        force: replace an existing output, and forget an interrupted run.
        dry_run: measure and search, but write no checkpoint, and distill nothing.
        **settings: the other fields of `PruneSettings`.

    Raises:
        InputError: an option or the source is wrong, or no smaller model meets the budget.
        HybridizeError: writing failed; the output is as it was before.
    """
    if calibration is not None:
        settings["calibration"] = str(calibration)
    wanted = None if params is None else str(params)
    chosen = PruneSettings(params=wanted, axes=tuple(axes), **settings)
    output, place = Path(output), choose_device(device)
    if _shape_alone(model):
        if not dry_run:
            raise InputError(f"{model}: has no weights; --dry-run works without them")
        if scores is not None or chosen.widths == "per-block":
            option = "--widths per-block" if scores is None else f"--scores {scores}"
            raise InputError(f"{option}: needs a model's weights, and {model} has none")
        return plan(model, output, chosen, place)
    source = resolve(model)
    if not dry_run:
        check_output(output, source, force=force)
    run = Run(model, source, output, chosen, None if scores is None else Path(scores), place)
    if dry_run:
        return run.describe()
    return run.prune(resume=resume, force=force, max_shard_size=max_shard_size)


def _shape_alone(model: str | Path) -> bool:
    """Tell whether a model is a configuration without weights."""
    path = Path(model)
    if not path.exists():
        return published(str(model)) is not None
    return path.is_file() or (
        (path / "config.json").is_file() and not list(path.glob("*.safetensors*"))
    )
