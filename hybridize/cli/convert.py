"""`hybridize convert`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import model_argument, output_option
from hybridize.cli.results import print_format, print_output, size_rows, weight_files
from hybridize.console import console
from hybridize.conversion.check_report import CONVERSION, RESULT, SOURCE
from hybridize.conversion.config import ConvertConfig
from hybridize.units import size_in_words

if TYPE_CHECKING:
    from hybridize.conversion.check_report import CheckReport
    from hybridize.conversion.results import ConversionResult

CHECKED = (SOURCE, RESULT, CONVERSION)


@click.command(short_help="Swap attention blocks for Mamba-2 and write the hybrid.")
@model_argument
@output_option("Where to write the hybrid.")
@config_options(ConvertConfig)
def convert(model: str, output: Path, config: ConvertConfig) -> None:
    """Swap attention blocks of MODEL for Mamba-2 blocks.

    Writes a checkpoint that AutoModelForCausalLM.from_pretrained opens. Distill it afterwards to
    recover the quality. Only one block is in memory at a time.
    """
    from hybridize.conversion.convert import convert as convert_checkpoint

    result = convert_checkpoint(model, output, config=config)
    if console.json_mode:
        console.json(result.to_dict())
        return
    console.table(
        ["", f"{result.source_format} (before)", f"{result.format} (after)"],
        [
            ("layout", result.layout_before, result.layout_after),
            ("attention", len(result.kept) + len(result.swapped), len(result.kept)),
            ("Mamba-2", result.layout_before.count("M"), result.layout_after.count("M")),
            *size_rows(result),
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
            caption="Squared error relative to the attention's output, on held-out text.",
        )
    if result.check:
        _print_check(result.check)
    if result.calibration:
        cost = result.calibration
        forwards = (
            ""
            if cost.forwards is None
            else (f", as much as {cost.forwards:.1f} forward passes over the text")
        )
        console.message(f"calibration: {cost.seconds:.0f} s{forwards}")
    if result.selection:
        _print_selection(result)
    print_format(result)
    print_output(result, weight_files(result.files))


def _print_check(check: "CheckReport") -> None:
    """Print the differences between transformers and hybridize, or why there are none."""
    if check.skipped is not None:
        console.message(f"not checked: {check.skipped}")
        return
    found = {(one.compared, one.input): one for one in check.comparisons}

    def cell(compared: str, given: str) -> str:
        one = found.get((compared, given))
        return "" if one is None else f"{one.difference:.1g} of {one.allowed:.1g}"

    rows = [
        (given, *(cell(compared, given) for compared in CHECKED))
        for given in dict.fromkeys(one.input for one in check.comparisons)
    ]
    console.table(
        ["largest difference of logits", *CHECKED],
        rows,
        caption="In float32, and how much rounding explains. source: MODEL in transformers and in "
        "hybridize. result: the same of the result. conversion: MODEL and the result, which "
        "continues with MODEL's activations behind each new block.",
    )
    for left_out in check.unreached:
        console.message(f"not checked: {left_out.input}: {left_out.reason}")
    for note in check.notes:
        console.message(f"note: {note}")


def _print_selection(result: "ConversionResult") -> None:
    """Print the measurements of the selection, and what they cost."""
    recall = any(point.recall is not None for point in result.curve)
    console.table(
        [
            "attention kept",
            "KL, nats/token",
            *(["recall loss, nats/token"] if recall else []),
            "which",
        ],
        [
            (
                len(point.kept),
                f"{point.kl:.3f}",
                *([f"{point.recall:+.3f}"] if point.recall is not None else []),
                _numbers(point.kept),
            )
            for point in result.curve
        ],
        caption="KL divergence from MODEL before distillation. "
        + ("Recall loss: its rise on tokens that must be retrieved, in nats. " if recall else "")
        + f"To choose the same blocks again: --keep {_numbers(result.kept)}",
    )
    cost = result.selection
    assert cost is not None
    console.message(
        f"selection: {cost.runs:.0f} runs from a swapped block to the end, as much as "
        f"{cost.forwards:.0f} forward passes over the text, in {cost.seconds:.0f} s"
    )


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values)) or "none"
