"""``hybridize eval``."""

from typing import Any

import click

from hybridize.cli import options


def _split_names(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> list[str] | None:
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


@click.command("eval")
@options.models_argument
@click.option(
    "--tasks",
    metavar="NAME,...",
    callback=_split_names,
    help="Tasks of lm-eval's by name.  [default: mmlu; none if only --perplexity is given]",
)
@click.option(
    "--mmlu-dir",
    type=click.Path(),
    metavar="DIR",
    help="Read MMLU, or an exam in its layout, from DIR/dev/*_dev.csv and DIR/test/*_test.csv "
    "instead of the hub.",
)
@click.option(
    "--num-fewshot",
    type=int,
    metavar="N",
    help="Answered questions in each prompt.  [default: 5 for MMLU, else the task's own]",
)
@click.option(
    "--limit", type=int, metavar="N", help="Ask only the first N questions of each task or subject."
)
@click.option(
    "--perplexity", type=click.Path(), metavar="FILE", help="Measure perplexity on a text file."
)
@click.option(
    "--baseline",
    metavar="MODEL",
    help="Evaluate this model first and show how much of its scores the others reach.",
)
@options.output_option("Write the results in lm-eval's JSON layout.", file=True, required=False)
@options.force_option
@click.option("--per-subject", is_flag=True, help="Show every subject, however many there are.")
@click.option(
    "--batch-size", type=int, default=8, show_default=True, help="Prompts per forward pass."
)
@click.option(
    "--max-length",
    type=int,
    metavar="N",
    help="Tokens that the model sees at most.  [default: what it allows; 4096 for --perplexity]",
)
@options.device_option
@options.dtype_option(
    "Of weights and computation; auto is float32 on the CPU, else the checkpoint's own."
)
@click.option(
    "--backend",
    type=click.Choice(("hybridize", "transformers")),
    default="hybridize",
    show_default=True,
    help="What runs the model: this package, or transformers' own class for it.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, options.LARGEST_SEED),
    metavar="N",
    help="Seed of all chance.  [default: lm-eval's own seeds]",
)
@options.cache_options
@options.common_options
def evaluate(models: tuple[str, ...], per_subject: bool, **arguments: Any) -> None:
    """Measure accuracy and perplexity of checkpoints with lm-eval.

    \b
    hybridize eval MODEL --mmlu-dir DIR           MMLU, 5-shot, from the original files
    hybridize eval HYBRID --baseline ORIGINAL     ... and how much the hybrid recovers
    hybridize eval MODEL --tasks arc_easy,boolq   any other task, fetched from the hub
    hybridize eval MODEL --tasks recall           finding again what the text said, offline
    hybridize eval MODEL --perplexity FILE        how well a text is predicted
    """
    from hybridize import evals
    from hybridize.console import console

    result = evals.evaluate(models, **arguments)
    if console.json_mode:
        console.json(result.to_dict())
    else:
        evals.print_result(result, per_subject=per_subject)
