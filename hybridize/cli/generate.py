"""`hybridize generate`."""

from contextlib import closing

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import model_argument
from hybridize.console import console
from hybridize.generate_config import GenerateConfig


@click.command(short_help="Continue a text with a checkpoint.")
@model_argument
@click.option(
    "-p",
    "--prompt",
    metavar="TEXT",
    default="",
    help="The text to continue.  [default: none; the model starts a document]",
)
@config_options(GenerateConfig)
def generate(model: str, prompt: str, config: GenerateConfig) -> None:
    """Continue a text with MODEL and print it to stdout while it is generated.

    Runs any checkpoint that hybridize reads, Transformer or hybrid.
    """
    from hybridize.generation import generate as stream

    with closing(stream(model, prompt, config=config)) as pieces:
        if console.json_mode:
            console.json({"prompt": prompt, "text": "".join(pieces)})
            return
        first = next(pieces, "")  # raises any error before the prompt is printed
        click.echo(prompt + first, nl=False)
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
