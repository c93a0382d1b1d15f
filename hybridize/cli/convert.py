"""`hybridize convert`."""

from pathlib import Path

import click

from hybridize.cli.options import (
    common_options,
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


@click.command(short_help="Swap attention blocks for Mamba-2 and write the hybrid.")
@model_argument
@output_option("Where to write the hybrid.")
@click.option(
    "--attention",
    metavar="N|PERCENT%",
    help="Attention blocks to keep: a number or a share.  [default: 25%]",
)
@click.option("--keep", metavar="I,J,…", help="Keep just these attention blocks, counted from 0.")
@click.option("--pattern", metavar="STR", help="The whole layout: * attention, M Mamba-2, - MLP.")
@click.option(
    "--select",
    type=click.Choice(["uniform", "sensitivity"]),
    default="uniform",
    show_default=True,
    help="How --attention chooses: evenly spread, or those whose loss costs the most, measured "
    "on the calibration text with the whole model in memory.",
)
@click.option(
    "--init",
    metavar="attention|random|DIR",
    default="attention",
    show_default=True,
    help="First values of the new blocks: from the attention they replace, random, or the "
    "Mamba-2 blocks of a hybrid of the same MODEL, such as one whose blocks were aligned.",
)
@click.option(
    "--calibration",
    metavar="FILE|DATASET|teacher",
    help="Fit the new blocks, in closed form, to what attention does on this text; teacher lets "
    "MODEL write it.  [default: none, and teacher for --select sensitivity]",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="How much of the calibration text to use.",
)
@click.option(
    "--ssm-groups",
    metavar="heads|kv|N",
    default="heads",
    show_default=True,
    help="Separate B and C per query head, per key/value head, or in N groups.",
)
@click.option(
    "--ssm-expand",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="Width of the new blocks in units of the attention's; GGUF needs 2.",
)
@click.option("--d-state", type=click.IntRange(min=1), help="State per head.  [default: head dim]")
@click.option(
    "--ssm-bias/--no-ssm-bias",
    default=True,
    show_default=True,
    help="Biases of the new blocks' projections; GGUF needs none, for which --calibration finds "
    "weights that hold the gate open instead.",
)
@click.option(
    "--format",
    "format_",
    metavar="auto|NAME",
    default="auto",
    show_default=True,
    help="On-disk architecture; auto is the first stock one that holds the result exactly.",
)
@dtype_option("Dtype of the written weights; auto keeps the source's.")
@shard_size_option
@click.option("--allow-nonfinite", is_flag=True, help="Go on with NaN or infinity in the weights.")
@seed_option
@device_option
@force_option
@dry_run_option
@common_options
def convert(
    model: str,
    output: Path,
    attention: str | None,
    keep: str | None,
    pattern: str | None,
    select: str,
    init: str,
    calibration: str | None,
    calibration_tokens: int,
    ssm_groups: str,
    ssm_expand: int,
    d_state: int | None,
    ssm_bias: bool,
    format_: str,
    dtype: str,
    max_shard_size: int,
    allow_nonfinite: bool,
    seed: int,
    device: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Turn attention blocks of MODEL into Mamba-2 blocks.

    The result is a checkpoint directory that AutoModelForCausalLM.from_pretrained opens. It is a
    starting point: distill it to get the quality back. Memory holds one block at a time.
    """
    from hybridize.conversion.convert import convert as convert_checkpoint

    result = convert_checkpoint(
        model,
        output,
        attention=attention,
        keep=None if keep is None else _parse_keep(keep),
        pattern=pattern,
        select=select,
        init=init,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        ssm_groups=ssm_groups,
        ssm_expand=ssm_expand,
        d_state=d_state,
        ssm_bias=ssm_bias,
        format=format_,
        dtype=dtype,
        max_shard_size=max_shard_size,
        seed=seed,
        device=device,
        allow_nonfinite=allow_nonfinite,
        force=force,
        dry_run=dry_run,
    )
    if console.json_mode:
        console.json(result.to_dict())
        return
    growth = result.parameters_after / result.parameters_before - 1
    console.table(
        ["", f"{result.source_format} (before)", f"{result.format} (after)"],
        [
            ("layout", result.layout_before, result.layout_after),
            ("attention", len(result.kept) + len(result.swapped), len(result.kept)),
            ("Mamba-2", result.layout_before.count("M"), result.layout_after.count("M")),
            (
                "parameters",
                f"{result.parameters_before:,}",
                f"{result.parameters_after:,} ({growth:+.1%})",
            ),
            ("weights", size_in_words(result.bytes_before), size_in_words(result.bytes_after)),
            (
                "cache at 32k tokens",
                size_in_words(result.cache_before),
                size_in_words(result.cache_after),
            ),
        ],
    )
    console.table(
        ["attention blocks", "count", "which"],
        [
            ("kept", len(result.kept), _numbers(result.kept)),
            ("swapped", len(result.swapped), _numbers(result.swapped)),
        ],
    )
    if result.errors:
        console.table(
            ["new block", "error before calibration", "after"],
            [(e.block, f"{e.before:.1%}", f"{e.after:.1%}") for e in result.errors],
            caption="Share of the attention output's power, on text that the fit did not see.",
        )
    if result.curve:
        console.table(
            ["attention kept", "KL, nats/token", "which"],
            [(len(p.kept), f"{p.kl:.3f}", _numbers(p.kept)) for p in result.curve],
            caption="What each swap costs before distillation. "
            f"--keep {_numbers(result.kept)} gives this choice again.",
        )
    console.message(f"format: {result.format}: {result.reason}")
    for note in result.notes:
        console.message(f"note: {note}")
    if result.dry_run:
        console.message(f"dry run: {result.output} was not written")
    else:
        files = "1 weight file" if result.files == 1 else f"{result.files} weight files"
        console.message(f"written: {result.output} ({files})")


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values)) or "none"


def _parse_keep(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers like 3,11", param_hint="--keep"
        ) from None
