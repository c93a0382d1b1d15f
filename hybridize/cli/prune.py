"""`hybridize prune`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import model_argument, output_option
from hybridize.cli.results import print_format, print_output, size_rows
from hybridize.compress.prune.config import PruneConfig
from hybridize.console import console

if TYPE_CHECKING:
    from hybridize.compress.prune.results import PruningResult, ScoredCandidate


@click.command(short_help="Cut a model down to a budget of parameters, memory or time.")
@model_argument
@output_option("Where to write the smaller model.")
@config_options(PruneConfig)
def prune(model: str, output: Path, config: PruneConfig) -> None:
    """Cut MODEL, a hybrid or a plain Transformer, down to a budget.

    The most promising smaller architectures are cut in memory and measured. The one with the
    smallest KL divergence from MODEL is written. Distill it from MODEL to recover quality.

    With --dry-run, MODEL may also be a config.json or the name of a published model.
    """
    from hybridize.compress.prune.prune import prune as prune_checkpoint

    result = prune_checkpoint(model, output, config=config)
    if console.json_mode:
        console.json(result.to_dict())
        return
    _print_candidates(result)
    _print_change(result)
    print_format(result)
    distilled = f"distilled on {result.distilled_tokens:,} tokens"
    print_output(result, distilled if result.distilled_tokens else "with importance.png")


def _print_candidates(result: "PruningResult") -> None:
    measured = {
        "KL, nats": [one.kl for one in result.candidates],
        "distilled": [one.kl_distilled for one in result.candidates],
    }
    measured = {name: column for name, column in measured.items() if set(column) != {None}}

    def row(number: int, candidate: "ScoredCandidate") -> tuple[str, ...]:
        values = [column[number] for column in measured.values()]
        return (
            "→" if candidate.chosen else "",
            *("" if value is None else f"{value:.3f}" for value in values),
            f"{candidate.damage:.3f}",
            *candidate.costs,
            candidate.format,
            candidate.changes,
        )

    costs = ["cost"] * len(result.costs_before)
    console.table(
        ["", *measured, "expected KL", *costs, "format", "cut"],
        [row(number, candidate) for number, candidate in enumerate(result.candidates)],
        caption=f"The best of {result.fitting:,} architectures within the budget, out of "
        f"{result.considered:,}. The model before the cut: {'; '.join(result.costs_before)}.",
    )


def _print_change(result: "PruningResult") -> None:
    rows = [
        ("layout", _short(result.layout_before), _short(result.layout_after)),
        *size_rows(result),
    ]
    if result.step_seconds is not None:
        before, after = result.step_seconds
        ratio = f"{1000 * after:.3g} ms ({after / before:.1%})"
        rows.append(("decoding step, measured", f"{1000 * before:.3g} ms", ratio))
    console.table(["", "before", "after"], rows)


def _short(layout: str) -> str:
    """Return the pattern, or the number of blocks of each kind if the pattern is long."""
    if len(layout) <= 40:
        return layout
    return f"{len(layout)} blocks: " + ", ".join(f"{layout.count(kind)} {kind}" for kind in "M-*")
