"""Compare the metrics of a model with those of its baseline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridize.evals.results import Comparison, Key, Metric, ModelResult, exp, tasks_in


def compare(model: ModelResult, baseline: ModelResult) -> ModelResult:
    """Return ``model``'s result with the comparison of each metric to ``baseline``."""
    ratio = None
    if model.perplexity and baseline.perplexity:
        ratio = exp(model.perplexity.nats_per_token - baseline.perplexity.nats_per_token)
    return replace(model, comparisons=tuple(_comparisons(model, baseline)), perplexity_ratio=ratio)


def mcnemar(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Return the p-value of the exact, two-sided McNemar test on paired outcomes.

    Only pairs with different outcomes count. If both models were equally good, each would be right
    in half of those pairs, which the binomial distribution tests (McNemar 1947, "Note on the
    sampling error of the difference between correlated proportions or percentages").

    Args:
        first: outcomes, 0 or 1.
        second: outcomes on the same questions, in the same order.
    """
    from scipy.stats import binomtest

    pairs = list(zip(first, second, strict=True))
    wins = sum(a > b for a, b in pairs)
    losses = sum(a < b for a, b in pairs)
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _comparisons(model: ModelResult, baseline: ModelResult) -> Iterator[Comparison]:
    theirs = {metric.key: metric for metric in baseline.metrics}
    for ours in model.metrics:
        if ours.key not in theirs:  # a task can fail to score one of the models
            continue
        value = theirs[ours.key].value
        yield Comparison(
            *ours.key,
            difference=ours.value - value,
            recovery=ours.value / value if value else None,
            p_value=_p_value(ours, model, baseline),
        )


def _p_value(metric: Metric, model: ModelResult, baseline: ModelResult) -> float | None:
    ours, theirs = (list(_outcomes(metric, result)) for result in (model, baseline))
    if not ours or not all(outcome in (0, 1) for outcome in ours + theirs):
        return None
    return mcnemar(ours, theirs)


def _outcomes(metric: Metric, result: ModelResult) -> Iterator[Any]:
    """Yield the score of each question behind ``metric``, in the same order for all models."""
    for task in tasks_in(metric.task, result.lm_eval["group_subtasks"]):
        key: Key = (task, metric.metric, metric.filter)
        scores: Mapping[int, Any] = result.scores.get(key, {})
        yield from (scores[question] for question in sorted(scores))
