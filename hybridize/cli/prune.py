"""`hybridize prune`."""

from pathlib import Path

import click

from hybridize.cli.options import (
    common_options,
    count_option,
    device_option,
    dry_run_option,
    dtype_option,
    force_option,
    model_argument,
    output_option,
    seed_option,
)
from hybridize.console import console, size_in_words


@click.command(short_help="Cut a model down to a budget of parameters or memory.")
@model_argument
@output_option("Where to write the smaller model.")
@click.option("--params", metavar="PERCENT%|N", help="The most parameters: 70%, 1.3B.")
@click.option(
    "--memory",
    metavar="SIZE@CONTEXT[xBATCH]",
    help="The most memory of weights, cache and states at a context length: 24GiB@65536x4.",
)
@click.option(
    "--axes",
    metavar="A,B,…",
    help="What may be cut: depth, ffn, attention, attention-queries, mamba-heads, "
    "mamba-channels, mamba-state, hidden.  [default: all]",
)
@click.option(
    "--calibration",
    metavar="FILE|DATASET|teacher",
    default="teacher",
    show_default=True,
    help="Text that importance is measured on; teacher lets MODEL write it.",
)
@count_option("--calibration-tokens", "How much of it.  [default: 16k]")
@click.option(
    "--scores",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Importance that was measured before; measured and written there if it does not exist.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="How many architectures to cut in memory and measure.",
)
@click.option(
    "--multiple-of",
    type=click.IntRange(min=1),
    help="What hidden size and MLP width are multiples of.  [default: about a sixteenth]",
)
@click.option(
    "--offload",
    is_flag=True,
    help="One block in memory at a time; candidates are then ranked by importance alone.",
)
@click.option(
    "--format",
    "format_",
    metavar="auto|NAME",
    default="auto",
    show_default=True,
    help="On-disk architecture; auto keeps MODEL's where it can.",
)
@dtype_option("Dtype of the written weights; auto keeps the source's.")
@seed_option
@device_option
@force_option
@dry_run_option
@common_options
def prune(
    model: str,
    output: Path,
    params: str | None,
    memory: str | None,
    axes: str | None,
    calibration: str,
    calibration_tokens: int | None,
    scores: Path | None,
    candidates: int,
    multiple_of: int | None,
    offload: bool,
    format_: str,
    dtype: str,
    seed: int,
    device: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Cut MODEL, a hybrid or a plain Transformer, down to a budget.

    Of all smaller architectures within it, those that look best are cut in memory and measured;
    the closest to MODEL is written. Distil it from MODEL to get back what it lost.
    """
    from hybridize.compress.prune.prune import ALL_AXES
    from hybridize.compress.prune.prune import prune as prune_checkpoint

    result = prune_checkpoint(
        model,
        output,
        params=params,
        memory=memory,
        axes=ALL_AXES if axes is None else tuple(axes.replace(" ", "").split(",")),
        calibration=calibration,
        calibration_tokens=calibration_tokens or 16_384,
        scores=scores,
        candidates=candidates,
        multiple_of=multiple_of,
        offload=offload,
        format=format_,
        dtype=dtype,
        seed=seed,
        device=device,
        force=force,
        dry_run=dry_run,
    )
    if console.json_mode:
        console.json(result.to_dict())
        return
    console.table(
        ["", "KL, nats", "expected", *(["cost"] * len(result.costs_before)), "format", "cut"],
        [
            (
                "→" if one.chosen else "",
                "" if one.kl is None else f"{one.kl:.3f}",
                f"{one.damage:.3f}",
                *one.costs,
                one.format,
                one.what,
            )
            for one in result.candidates
        ],
        caption=f"Of {result.looked_at:,} architectures {result.fitting:,} are within the budget; "
        f"these looked best. The model as it was: {'; '.join(result.costs_before)}.",
    )
    share = result.parameters_after / result.parameters_before
    console.table(
        ["", "before", "after"],
        [
            ("layout", result.layout_before, result.layout_after),
            (
                "parameters",
                f"{result.parameters_before:,}",
                f"{result.parameters_after:,} ({share:.1%})",
            ),
            ("weights", size_in_words(result.bytes_before), size_in_words(result.bytes_after)),
        ],
    )
    console.message(f"format: {result.format}: {result.reason}")
    for note in result.notes:
        console.message(f"note: {note}")
    if result.dry_run:
        console.message(f"dry run: {result.output} was not written")
    else:
        console.message(f"written: {result.output} (with importance.png)")
