"""`hybridize demo`."""

from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.console import console
from hybridize.demo.config import DemoConfig
from hybridize.units import duration_in_words, size_in_words

if TYPE_CHECKING:
    from hybridize.demo.results import DemoResult

_COLUMNS = (
    "model", "layout", "weights", "exam", "knowledge", "recall", "recovery", "perplexity",
    "cache at 32k", "speed",
)  # fmt: skip


@click.command(short_help="Run all commands on the bundled tiny checkpoint.")
@config_options(DemoConfig)
def demo(config: DemoConfig) -> None:
    """Convert, distill, prune, quantize, evaluate and time the bundled checkpoint.

    Runs offline, on a CPU, in a few minutes. Writes a page of figures, report.html.
    """
    from hybridize.demo.pipeline import run_demo

    result = run_demo(config=config)
    if console.json_mode:
        console.json(result.to_dict())
        return
    _show_table(result)
    exact = next(row.difference for row in result.rows if row.difference is not None)
    console.message(
        f"keeping all attention blocks changes the logits in transformers by at most {exact:.2g}; "
        "benchmarks/recovery.py measures longer distillations"
    )
    console.message(f"transformers generates with the distilled hybrid: {result.text!r}")
    console.message(f"written in {duration_in_words(result.seconds)}: {config.output}")
    console.message(f"report: {result.report}")


def _show_table(result: "DemoResult") -> None:
    from hybridize.demo.pipeline import SIZES

    rows = [
        (
            row.model,
            row.layout,
            size_in_words(row.weight_bytes),
            f"{row.accuracy:.1%}",
            f"{row.knowledge:.1%}",
            f"{row.recall:.1%}",
            f"{row.recovery:.1%}",
            f"{row.perplexity:.2f}",
            size_in_words(row.cache_bytes),
            "-" if row.speed is None else f"{row.speed:.2f} ×",
        )
        for row in result.rows
    ]
    console.table(
        _COLUMNS,
        rows,
        title="The bundled checkpoint and the models made from it",
        caption="Exam: accuracy on the bundled exam, 5-shot, four choices (random guessing gets "
        "25%). Knowledge: subjects whose answers are in the weights. Recall: subjects whose "
        "answers are in the context. Recovery: accuracy divided by the original's. Speed: decoding "
        "tokens per second divided by the original's, "
        f"{SIZES.bench['batch_size'][0]} sequences after a prompt of "
        f"{SIZES.bench['prompt_len'][-1]:,} tokens.",
    )
