"""`hybridize export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli import options
from hybridize.console import console, size_in_words

if TYPE_CHECKING:
    from hybridize.exporters.onnx import OnnxResult


@click.command("export", short_help="Write a checkpoint as ONNX graphs or as a GGUF file.")
@options.model_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR|FILE", required=True,
              help="What to write: a directory of graphs, or a GGUF file.")  # fmt: skip
@click.option("--to", type=click.Choice(["onnx", "gguf"]), default="onnx", show_default=True,
              help="What to write.")  # fmt: skip
@options.dtype_option("Of a GGUF file's matrices; auto keeps the checkpoint's.")
@click.option("--tokenizer", metavar="auto|none|NAME", default="auto", show_default=True,
              help="In a GGUF file: the checkpoint's; none, for token ids alone; or llama.cpp's "
              "name for how it splits text, where that is not recognized.")  # fmt: skip
@options.seed_option
@options.force_option
@options.dry_run_option
@options.common_options
def export(
    model: str,
    output: Path,
    to: str,
    dtype: str,
    tokenizer: str,
    seed: int,
    force: bool,
    dry_run: bool,
) -> None:
    """Write MODEL for other software.

    onnx: two graphs, one that reads a prompt and one that goes on by a token. Keys, values,
    convolution windows and SSM states are arguments and results. What was written is run with
    onnxruntime and compared with torch before it is put in place.

    gguf: a file for llama.cpp, whose Mamba-2 is twice as wide as the model and has no projection
    biases: convert with --ssm-expand 2 --no-ssm-bias.
    """
    from hybridize.exporters.export import export as run
    from hybridize.exporters.onnx import OnnxResult

    result = run(
        model, output, to=to, dtype=dtype, tokenizer=tokenizer, seed=seed, force=force,
        dry_run=dry_run,
    )  # fmt: skip
    if console.json_mode:
        console.json(result.to_dict())
        return
    if isinstance(result, OnnxResult):
        _show_graphs(result)
    else:
        rows = [
            ("architecture", result.architecture),
            ("tensors", f"{result.tensors} ({size_in_words(result.nbytes)}, {result.dtype})"),
            ("tokenizer", " / ".join(dict.fromkeys(result.tokenizer))),
        ]
        console.table(["", ""], rows)
    done = "dry run: {} was not written" if result.dry_run else "written: {}"
    console.message(done.format(result.output))


def _show_graphs(result: "OnnxResult") -> None:
    from hybridize.exporters.onnx import CHECKED_TOKENS

    rows = [(name, size_in_words(size)) for name, size in result.files.items()]
    caption = f"{len(result.states)} states are handed on."
    if result.difference is not None:
        caption += (
            f" onnxruntime's logits over {CHECKED_TOKENS} tokens are at most "
            f"{result.difference:.1e} away from torch's."
        )
    console.table(["file", "size"], rows, caption=caption)
