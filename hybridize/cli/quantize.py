"""`hybridize quantize`."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import model_argument, output_option
from hybridize.cli.results import print_output, weight_files
from hybridize.compress.quantize.config import QuantizeConfig
from hybridize.console import console
from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.units import size_in_words

if TYPE_CHECKING:
    from hybridize.compress.quantize.results import QuantizeResult


@click.command(short_help="Store the linear layers in FP8, for transformers and vLLM.")
@model_argument
@output_option("Where to write the FP8 checkpoint.")
@config_options(QuantizeConfig)
def quantize(model: str, output: Path, config: QuantizeConfig) -> None:
    """Store the linear layers of MODEL in FP8, in the compressed-tensors format.

    Embeddings, head, norms, convolutions, A_log, D and dt_bias are never quantized. By default, the
    first and last blocks are not quantized either. AutoModelForCausalLM (with compressed-tensors)
    and vLLM open the result.
    """
    from hybridize.compress.quantize.quantize import quantize as quantize_checkpoint

    result = quantize_checkpoint(model, output, config=config)
    if console.json_mode:
        console.json(result.to_dict())
        return
    _print(result)
    print_output(result, weight_files(result.files))


def _print(result: "QuantizeResult") -> None:
    ratio = result.bytes_after / result.bytes_before
    console.table(
        ["", result.format],
        [
            ("scheme", result.scheme),
            ("layout", result.layout),
            ("parameters", f"{result.parameters:,}"),
            ("in FP8", f"{result.quantized:,} ({result.quantized / result.parameters:.1%})"),
            (
                "weights",
                f"{size_in_words(result.bytes_before)} -> {size_in_words(result.bytes_after)} "
                f"({ratio:.1%})",
            ),
        ],
    )
    if result.kept:
        console.table(
            ["block kept", "kind", "reason"],
            [(block.block, LAYER_KINDS[block.kind].title, block.reason) for block in result.kept],
        )
    if result.skipped:
        # The same tensor of many layers is one row.
        rows = Counter((_any_layer(name), reason) for name, reason in result.skipped.items())
        console.table(
            ["tensors not quantized", "count", "reason"],
            [(name, count, reason) for (name, reason), count in rows.items()],
        )


def _any_layer(name: str) -> str:
    """Replace the number of the layer in a tensor's name: ``model.layers.*.mlp.up_proj.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=1)
