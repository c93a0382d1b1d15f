"""`hybridize demo`."""

from pathlib import Path

import click

from hybridize.cli.options import common_options, force_option, output_option
from hybridize.console import console, size_in_words


@click.command(short_help="Run the whole chain on the bundled tiny checkpoint.")
@output_option("Where to put the converted checkpoints.  [default: demo-out]", required=False)
@force_option
@common_options
def demo(output: Path | None, force: bool) -> None:
    """Convert the bundled checkpoint, distill, prune and quantize it, evaluate and time every step.

    Offline, on a CPU, in a few minutes. Ends with a page of pictures, report.html.
    """
    from hybridize.demo.run import SPEED, run_demo

    output = output or Path("demo-out")
    result = run_demo(output, force=force)
    if console.json_mode:
        console.json(result.to_dict())
        return
    console.table(
        [
            "model", "layout", "weights", "exam", "knowledge", "recall", "recovery",
            "perplexity", "cache at 32k", "speed",
        ],
        [
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
        ],
        title="The bundled checkpoint and what became of it",
        caption="Exam: 5-shot, four choices, so chance is 25%. Knowledge is in the weights, "
        "recall in the context. Speed: new tokens per second over the original's, "
        f"{SPEED['batch_size'][0]} sequences after {SPEED['prompt_len'][-1]:,} tokens.",
    )  # fmt: skip
    exact = next(row.difference for row in result.rows if row.difference is not None)
    console.message(
        f"swapping nothing moves the logits of stock transformers by {exact:.2g}; "
        "what a longer distillation gets back: benchmarks/recovery.py"
    )
    console.message(f"transformers, with the distilled hybrid: {result.text!r}")
    console.message(
        f"in {result.seconds:.0f} s; checkpoints, measurements and pictures (PNG) are in {output}"
    )
    console.message(f"what was gained and what was lost: open {result.report}")
