"""`hybridize quantize`."""

from pathlib import Path

import click

from hybridize.cli.options import (
    common_options,
    device_option,
    dry_run_option,
    force_option,
    model_argument,
    output_option,
    seed_option,
    shard_size_option,
)
from hybridize.console import console, size_in_words

_KINDS = {"*": "attention", "M": "Mamba-2", "-": "MLP"}


@click.command(short_help="Hold the linear layers in FP8, for transformers and vLLM.")
@model_argument
@output_option("Where to write the FP8 checkpoint.")
@click.option(
    "--scheme",
    type=click.Choice(["fp8", "fp8-tensor", "fp8-block"]),
    default="fp8",
    show_default=True,
    help="Scales per row and token; per tensor, static, from calibration; or per 128 x 128 block "
    "and 128 columns of a token.",
)
@click.option(
    "--keep-bf16",
    metavar="N|auto:BUDGET",
    help="Blocks that stay as they are: the first and last N, or, with auto, the N (or PERCENT%) "
    "whose quantization costs the most.  [default: 4, fewer for shallow models]",
)
@click.option(
    "--calibration",
    metavar="FILE|DATASET|teacher",
    help="Text for fp8-tensor and for auto; teacher lets MODEL write it.  "
    "[default: teacher where text is needed]",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="How much of the calibration text to use.",
)
@shard_size_option
@seed_option
@device_option
@force_option
@dry_run_option
@common_options
def quantize(
    model: str,
    output: Path,
    scheme: str,
    keep_bf16: str | None,
    calibration: str | None,
    calibration_tokens: int,
    max_shard_size: int,
    seed: int,
    device: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Hold the linear layers of MODEL in FP8, in the compressed-tensors format.

    Embeddings, head, norms, convolutions, A_log, D and dt_bias stay as they are, and so do the
    first and last blocks. AutoModelForCausalLM (with compressed-tensors) and vLLM open the result.
    """
    from hybridize.compress.quantize.quantize import quantize as quantize_checkpoint

    result = quantize_checkpoint(
        model,
        output,
        scheme=scheme,
        keep_bf16=keep_bf16,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        max_shard_size=max_shard_size,
        seed=seed,
        device=device,
        force=force,
        dry_run=dry_run,
    )
    if console.json_mode:
        console.json(result.to_dict())
        return
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
            ["block kept", "kind", "why"],
            [(block.block, _KINDS[block.kind], block.reason) for block in result.kept],
        )
    if result.skipped:
        console.table(["tensor left as it is", "why"], list(result.skipped.items()))
    if result.dry_run:
        console.message(f"dry run: {result.output} was not written")
    else:
        files = "1 weight file" if result.files == 1 else f"{result.files} weight files"
        console.message(f"written: {result.output} ({files})")
