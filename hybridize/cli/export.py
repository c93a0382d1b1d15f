"""`hybridize export`."""

from pathlib import Path

import click

from hybridize.cli import options
from hybridize.console import console, size_in_words


@click.command("export", short_help="Write a checkpoint as ONNX graphs.")
@options.model_argument
@options.output_option("Where to write the graphs, their weights and the tokenizer.")
@click.option("--to", type=click.Choice(["onnx"]), default="onnx", show_default=True,
              help="What to write.")  # fmt: skip
@options.seed_option
@options.force_option
@options.dry_run_option
@options.common_options
def export(model: str, output: Path, to: str, seed: int, force: bool, dry_run: bool) -> None:
    """Write MODEL as two ONNX graphs: one reads a prompt, one goes on by a token.

    Keys, values, convolution windows and SSM states are arguments and results of the graphs. What
    was written is run with onnxruntime and compared with torch before it is put in place.
    """
    from hybridize.modeling.export.onnx import CHECKED_TOKENS
    from hybridize.modeling.export.onnx import export as run

    result = run(model, output, to=to, seed=seed, force=force, dry_run=dry_run)
    if console.json_mode:
        console.json(result.to_dict())
        return
    rows = [(name, size_in_words(size)) for name, size in result.files.items()]
    caption = f"{len(result.states)} states are handed on."
    if result.difference is not None:
        caption += (
            f" onnxruntime's logits over {CHECKED_TOKENS} tokens are at most "
            f"{result.difference:.1e} away from torch's."
        )
    console.table(["file", "size"], rows, caption=caption)
    done = "dry run: {} was not written" if result.dry_run else "written: {}"
    console.message(done.format(result.output))
