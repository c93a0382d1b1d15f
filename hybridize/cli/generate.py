"""`hybridize generate`."""

import click

from hybridize.cli.options import (
    cache_options,
    common_options,
    device_option,
    dtype_option,
    model_argument,
    seed_option,
)
from hybridize.console import console


@click.command(short_help="Continue a text with a checkpoint.")
@model_argument
@click.option("-p", "--prompt", metavar="TEXT", default="", help="The text to go on from.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="At most."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Of sampling; 0 takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens with this much probability together.",
)
@seed_option
@device_option
@dtype_option("Dtype to compute in; auto is float32 on a CPU, else the checkpoint's.")
@cache_options
@common_options
def generate(
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    device: str,
    dtype: str,
    kv_cache_dtype: str,
    ssm_cache_dtype: str,
) -> None:
    """Continue a text with MODEL, streaming it to stdout.

    Runs any checkpoint that hybridize reads, Transformer or hybrid.
    """
    from hybridize.generation import generate as stream

    pieces = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        ssm_cache_dtype=ssm_cache_dtype,
    )
    if console.json_mode:
        console.json({"prompt": prompt, "text": "".join(pieces)})
        return
    first = next(pieces, "")  # whatever is wrong shows here, and must not leave half a line
    click.echo(prompt + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
