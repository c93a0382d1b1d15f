"""`hybridize eval`."""

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import models_argument
from hybridize.console import console
from hybridize.evals.config import EvalConfig


@click.command("eval", short_help="Measure accuracy and perplexity of checkpoints with lm-eval.")
@models_argument
@config_options(EvalConfig)
@click.option(
    "--per-subject", is_flag=True, help="Show every subject, even if there are more than 20."
)
def evaluate(models: tuple[str, ...], per_subject: bool, config: EvalConfig) -> None:
    """Measure accuracy and perplexity of checkpoints with lm-eval.

    \b
    hybridize eval MODEL --mmlu-dir DIR           MMLU, 5-shot, from local files
    hybridize eval MODEL --mmlu-dir DIR --tasks mmlu_continuation --limit 20
                                                  its answers as text instead of letters,
                                                  20 questions of each subject
    hybridize eval HYBRID --baseline ORIGINAL     accuracy relative to the original model
    hybridize eval MODEL --tasks arc_easy,boolq   other tasks, fetched from the hub
    hybridize eval MODEL --tasks recall_needles   questions about facts in the context, offline
    hybridize eval MODEL --perplexity FILE        perplexity on a text
    """
    from hybridize.cli.evaluate_table import print_result
    from hybridize.evals.evaluate import evaluate as evaluate_models

    result = evaluate_models(models, config=config)
    if console.json_mode:
        console.json(result.to_dict())
    else:
        print_result(result, per_subject=per_subject)
