"""`hybridize prune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    shard_size_option,
)
from hybridize.console import console, size_in_words

if TYPE_CHECKING:
    from hybridize.compress.prune.results import PruningResult


@click.command(short_help="Cut a model down to a budget of parameters, memory or time.")
@model_argument
@output_option("Where to write the smaller model.")
@click.option("--params", metavar="PERCENT%|N", help="The most parameters: 70%, 1.3B.")
@click.option(
    "--memory",
    metavar="SIZE@CONTEXT[xBATCH]",
    help="The most memory of weights, cache and states at a context length: 24GiB@65536x4.",
)
@click.option(
    "--weight-bits",
    type=click.IntRange(min=1),
    help="For --memory: bits of linear weights, if they will be quantized.  [default: as stored]",
)
@click.option(
    "--kv-bits",
    type=click.IntRange(min=1),
    help="For --memory: bits of keys and values, if they will be.  [default: as weights]",
)
@click.option(
    "--latency",
    metavar="SHARE[@CONTEXT[xBATCH]]",
    help="The most time of a decoding step, as a share of MODEL's on this machine: 0.7@65536.",
)
@click.option(
    "--axes",
    metavar="A,B,…",
    help="What may be cut: depth, ffn, attention, attention-queries, mamba-heads, "
    "mamba-channels, mamba-state, hidden.  [default: all]",
)
@click.option(
    "--widths",
    type=click.Choice(["uniform", "per-block"]),
    default="uniform",
    show_default=True,
    help="per-block: each block its own, in hybridize's own format, as no other holds that.",
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
    "--distill-top",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="K",
    help="Let the best K learn for --tokens, and keep the one that is then the best.",
)
@count_option("--tokens", "What each of --distill-top trains on.  [default: 200k]")
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
@shard_size_option
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@seed_option
@device_option
@force_option
@dry_run_option
@common_options
def prune(
    model: str,
    output: Path,
    axes: str | None,
    calibration_tokens: int | None,
    format_: str,
    **settings: Any,
) -> None:
    """Cut MODEL, a hybrid or a plain Transformer, down to a budget.

    Of all smaller architectures within it, those that look best are cut in memory and measured;
    the closest to MODEL is written. Distill it from MODEL to get back what it lost.

    With --dry-run, MODEL may be a config.json or the name of a published shape.
    """
    from hybridize.compress.prune.prune import prune as prune_checkpoint
    from hybridize.compress.prune.settings import ALL_AXES

    if calibration_tokens is not None:
        settings["calibration_tokens"] = calibration_tokens
    result = prune_checkpoint(
        model,
        output,
        axes=ALL_AXES if axes is None else tuple(axes.replace(" ", "").split(",")),
        format=format_,
        **settings,
    )
    if console.json_mode:
        console.json(result.to_dict())
        return
    _print(result)


def _print(result: "PruningResult") -> None:
    measured = {
        "KL, nats": [one.kl for one in result.candidates],
        "distilled": [one.kl_distilled for one in result.candidates],
    }
    measured = {name: column for name, column in measured.items() if set(column) != {None}}
    console.table(
        ["", *measured, "expected", *(["cost"] * len(result.costs_before)), "format", "cut"],
        [
            (
                "→" if one.chosen else "",
                *(
                    "" if column[row] is None else f"{column[row]:.3f}"
                    for column in measured.values()
                ),
                f"{one.damage:.3f}",
                *one.costs,
                one.format,
                one.what,
            )
            for row, one in enumerate(result.candidates)
        ],
        caption=f"Of {result.looked_at:,} architectures {result.fitting:,} are within the budget; "
        f"these looked best. The model as it was: {'; '.join(result.costs_before)}.",
    )
    share = result.parameters_after / result.parameters_before
    rows = [
        ("layout", _short(result.layout_before), _short(result.layout_after)),
        (
            "parameters",
            f"{result.parameters_before:,}",
            f"{result.parameters_after:,} ({share:.1%})",
        ),
        ("weights", size_in_words(result.bytes_before), size_in_words(result.bytes_after)),
    ]
    if result.step_seconds is not None:
        before, after = result.step_seconds
        faster = f"{1000 * after:.3g} ms ({after / before:.1%})"
        rows.append(("decoding step, measured", f"{1000 * before:.3g} ms", faster))
    console.table(["", "before", "after"], rows)
    console.message(f"format: {result.format}: {result.reason}")
    for note in result.notes:
        console.message(f"note: {note}")
    if result.dry_run:
        console.message(f"dry run: {result.output} was not written")
    elif result.distilled_tokens:
        console.message(
            f"written: {result.output} (distilled on {result.distilled_tokens:,} tokens)"
        )
    else:
        console.message(f"written: {result.output} (with importance.png)")


def _short(layout: str) -> str:
    """Return a pattern, or how many of each kind there are where it would burst the table."""
    if len(layout) <= 40:
        return layout
    return f"{len(layout)} blocks: " + ", ".join(f"{layout.count(kind)} {kind}" for kind in "M-*")
