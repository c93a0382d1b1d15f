"""`hybridize export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.convert import convert
from hybridize.cli.options import flags_of, model_argument
from hybridize.console import console
from hybridize.errors import InputError, as_flags
from hybridize.exporters.config import ExportConfig
from hybridize.units import size_in_words

if TYPE_CHECKING:
    from hybridize.exporters.gguf.export import GgufResult
    from hybridize.exporters.onnx.export import OnnxResult


@click.command("export", short_help="Write a checkpoint as ONNX graphs or as a GGUF file.")
@model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    required=True,
    help="Where to write: a directory for ONNX, a file for GGUF.",
)
@config_options(ExportConfig)
def export(model: str, output: Path, config: ExportConfig) -> None:
    """Write MODEL in the format of another program.

    onnx: two graphs, one that reads a prompt and one that decodes a token. Keys, values,
    convolution states and SSM states are inputs and outputs. Before the directory is written,
    onnxruntime runs the graphs, and their results are compared with torch's.

    gguf: a file for llama.cpp, whose Mamba-2 is twice as wide as the model and has no projection
    biases. Convert a model for it with --ssm-expand 2 --no-ssm-bias.
    """
    from hybridize.exporters.export import export as run
    from hybridize.exporters.onnx.export import OnnxResult

    try:
        result = run(model, output, config=config)
    except InputError as error:  # it may name options of `hybridize convert`
        error.args = (as_flags(str(error), flags_of(convert.params)),)
        raise
    if console.json_mode:
        console.json(result.to_dict())
        return
    if isinstance(result, OnnxResult):
        _show_graphs(result)
    else:
        _show_gguf(result)
    done = "dry run: {} was not written" if result.dry_run else "written: {}"
    console.message(done.format(result.output))


def _show_gguf(result: "GgufResult") -> None:
    rows = [
        ("architecture", result.architecture),
        ("tensors", f"{result.tensors} ({size_in_words(result.nbytes)}, {result.dtype})"),
        ("tokenizer", " / ".join(dict.fromkeys(result.tokenizer))),
    ]
    console.table(["", ""], rows)


def _show_graphs(result: "OnnxResult") -> None:
    from hybridize.exporters.onnx.check import CHECKED_TOKENS

    rows = [(name, size_in_words(size)) for name, size in result.files.items()]
    caption = f"The graphs have {len(result.states)} states."
    if result.difference is not None:
        caption += (
            f" Over {CHECKED_TOKENS} tokens, the logits of onnxruntime and torch differ by at most "
            f"{result.difference:.1e}."
        )
    console.table(["file", "size"], rows, caption=caption)
