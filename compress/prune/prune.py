"""`hybridize prune`: cut a checkpoint down to the best smaller model within a budget.

Follows MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4) and Minitron-SSM (Taghibakhshi et al.
2025, arXiv 2504.11409): importance from forward passes, a search over whole architectures, and a
measurement of the best ones, which are cut in memory. The best one is then cut from disk to disk.
"""

from pathlib import Path

from hybridize.checkpoints import check_output
from hybridize.checkpoints.formats import FORMATS
from hybridize.checkpoints.hub import resolve
from hybridize.compress.prune.config import PruneConfig
from hybridize.compress.prune.plan_without_weights import needs_weights, plan_without_weights
from hybridize.compress.prune.pruning_run import PruningRun
from hybridize.compress.prune.results import PruningResult
from hybridize.errors import InputError
from hybridize.modeling.devices import choose_device
from hybridize.options import takes_options


@takes_options(PruneConfig)
def prune(model: str | Path, output: str | Path, config: PruneConfig) -> PruningResult:
    """Make a hybrid or a plain Transformer smaller, in any format that hybridize reads.

    The cut removes rows and columns of weights, and rescales norms for the missing channels.
    Distill the result from the original to recover the quality.

    The run keeps its files in ``OUTPUT.prune`` beside the output, and deletes it at the end.
    ``resume`` continues an interrupted run.

    Args:
        model: a directory or a hub id. For a dry run, it may also be a directory without weights, a
            config.json, or the name of a published shape: all parts are then treated as
            equally important. So is a hub id, unless an option needs measurements: only its
            config.json is downloaded.
        output: the directory to write.
        config: the options; you can also give each option as a keyword.

    Returns:
        The result, with the figures that the command prints.

    Raises:
        InputError: an option or the source is wrong, or no smaller model meets the budgets.
        HybridizeError: writing failed; the output is as it was before.
    """
    if config.format not in ("auto", *FORMATS):
        raise InputError(f"`format={config.format}`: choose one of auto, {', '.join(FORMATS)}")
    output, device = Path(output), choose_device(config.device)
    if not needs_weights(model, config):
        return plan_without_weights(model, output, config, device)
    source = resolve(model)
    run = PruningRun(source, output, config, device)
    if config.dry_run:
        return run.plan()
    check_output(output, source, force=config.force)
    return run.run()
