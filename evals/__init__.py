"""How good a checkpoint is: lm-eval's tasks, MMLU from local files, perplexity, recovery."""

from hybridize.evals.results import (
    Comparison,
    EvaluationResult,
    Metric,
    ModelResult,
    Perplexity,
)
from hybridize.evals.run import evaluate
from hybridize.evals.table import print_result

__all__ = [
    "Comparison",
    "EvaluationResult",
    "Metric",
    "ModelResult",
    "Perplexity",
    "evaluate",
    "print_result",
]
