"""`hybridize distill`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import output_option
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.stages import STAGES
from hybridize.console import console

if TYPE_CHECKING:
    from hybridize.compress.distill.results import DistillResult, StageResult


@click.command(short_help="Train a converted checkpoint to behave like the original model.")
@click.argument("student")
@output_option("Where to write the distilled checkpoint, in the student's format.")
@config_options(DistillConfig)
def distill(student: str, output: Path, config: DistillConfig) -> None:
    """Train STUDENT, a converted checkpoint, to behave like the teacher.

    By default, only the blocks that replaced attention are trained, and the teacher generates the
    text. --resume continues an interrupted run; the result is the same as without the interruption.
    """
    from hybridize.compress.distill.distill import distill as distill_checkpoint

    result = distill_checkpoint(student, output, config=config)
    if os.environ.get("RANK", "0") != "0":
        return  # only the first process of several prints the result
    if console.json_mode:
        console.json(result.to_dict())
    elif result.dry_run:
        _print_plan(result)
    else:
        _print_result(result)


def _print_plan(result: "DistillResult") -> None:
    console.table(
        ["stage", "steps"],
        list(result.steps.items()),
        caption=f"Trains {result.trained:,} parameters, with {len(result.swapped)} new blocks.",
    )
    console.message(f"dry run: {result.output} was not written")


def _print_result(result: "DistillResult") -> None:
    losses = "; ".join(f"{stage.stage}: {STAGES[stage.stage].loss}" for stage in result.stages)
    measured = any(stage.perplexity_before is not None for stage in result.stages)
    console.table(
        [
            "stage",
            "tokens",
            "first loss",
            "last loss",
            "validation before",
            "validation after",
            *(("perplexity before", "perplexity after") if measured else ()),
            "skipped steps",
            "seconds",
            "tokens/s",
        ],
        [_cells(stage) for stage in result.stages],
        caption=f"Losses: {losses}.",
    )
    counts = [
        f"{result.trained:,} trained parameters",
        f"{result.shared:,} parameters shared with the teacher",
    ]
    counts += [f"{result.fp8_layers} linear layers in FP8"] if result.fp8_layers else []
    console.message("; ".join(counts))
    console.message(f"written: {result.output} (with distill.jsonl and distill.png)")


def _cells(stage: "StageResult") -> tuple[object, ...]:
    first, last = (
        "-" if loss is None else f"{loss:.4f}" for loss in (stage.loss_first, stage.loss_last)
    )
    perplexities = (stage.perplexity_before, stage.perplexity_after)
    return (
        stage.stage,
        f"{stage.tokens:,}",
        first,
        last,
        f"{stage.validation_before:.4f}",
        f"{stage.validation_after:.4f}",
        *(f"{value:.4f}" for value in perplexities if value is not None),
        stage.skipped,
        f"{stage.seconds:.0f}",
        f"{stage.tokens_per_second:,.0f}",
    )
