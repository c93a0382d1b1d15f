"""Comparison with a baseline: differences, recovery, and the exact McNemar test."""

import math

import pytest

from hybridize.evals.compare import compare, mcnemar
from hybridize.evals.results import Metric, ModelResult, Perplexity


def _exact(wins: int, losses: int) -> float:
    """Twice the probability of at most ``min(wins, losses)`` heads in ``wins + losses`` tosses."""
    tosses = wins + losses
    tail = sum(math.comb(tosses, heads) for heads in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**tosses)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 8), (8, 1), (5, 5), (0, 6), (30, 50)])
def test_mcnemar_counts_only_pairs_with_different_outcomes(wins: int, losses: int) -> None:
    ours = [1] * wins + [0] * losses + [1, 1, 0]
    theirs = [0] * wins + [1] * losses + [1, 1, 0]
    assert mcnemar(ours, theirs) == pytest.approx(_exact(wins, losses))


def test_mcnemar_gives_a_textbook_value() -> None:
    assert mcnemar([0] * 8 + [1], [1] * 8 + [0]) == pytest.approx(0.0390625)


def _perplexity(nats: float) -> Perplexity:
    return Perplexity("f.txt", bytes=100, words=20, tokens=40, window=8, nats_per_token=nats)


def _result(scores: dict[str, dict[int, float]], nats: float) -> ModelResult:
    every = [score for task in scores.values() for score in task.values()]
    values = {"all": every} | {task: list(found.values()) for task, found in scores.items()}
    return ModelResult(
        model="m",
        dtype="float32",
        device="cpu",
        metrics=tuple(
            Metric(
                task=task,
                label=task,
                depth=int(task != "all"),
                is_group=task == "all",
                metric="acc",
                filter="none",
                value=sum(found) / len(found),
                stderr=None,
                questions=len(found),
                num_fewshot=5,
                higher_is_better=True,
            )
            for task, found in values.items()
        ),
        perplexity=Perplexity(
            "f.txt", bytes=100, words=20, tokens=40, window=8, nats_per_token=nats
        ),
        prompts=0,
        truncated_prompts=0,
        seconds=1.0,
        lm_eval={"group_subtasks": {"all": list(scores)}},
        scores={(task, "acc", "none"): found for task, found in scores.items()},
    )


def test_questions_are_paired_by_number_in_any_order() -> None:
    # The order of tasks and questions may depend on the batch size.
    baseline = _result({"a": {0: 1, 1: 1, 2: 1, 3: 1}, "b": {0: 0, 1: 1}}, nats=2.0)
    model = _result({"b": {1: 0, 0: 1}, "a": {3: 0, 2: 1, 1: 0, 0: 0}}, nats=2.5)
    compared = compare(model, baseline)
    found = {comparison.task: comparison for comparison in compared.comparisons}
    assert found["a"].difference == pytest.approx(-0.75)
    assert found["a"].recovery == pytest.approx(0.25)
    assert found["a"].p_value == pytest.approx(_exact(0, 3))
    assert found["b"].p_value == pytest.approx(_exact(1, 1))
    assert found["all"].difference == pytest.approx(2 / 6 - 5 / 6)
    assert found["all"].p_value == pytest.approx(_exact(1, 4))
    assert compared.perplexity_ratio == pytest.approx(math.exp(0.5))


def test_without_correct_answers_or_binary_scores_there_is_no_ratio_and_no_test() -> None:
    baseline = _result({"a": {0: 0, 1: 0}}, nats=2.0)
    assert compare(baseline, baseline).comparisons[0].recovery is None
    graded = _result({"a": {0: 0.5, 1: 1}}, nats=2.0)
    assert compare(graded, baseline).comparisons[0].p_value is None


def test_perplexity_is_per_token_or_word_and_bits_are_per_byte() -> None:
    found = Perplexity(
        "f.txt", bytes=100, words=20, tokens=40, window=8, nats_per_token=math.log(8)
    )
    assert found.perplexity == pytest.approx(8)
    assert found.bits_per_byte == pytest.approx(3 * 40 / 100)
    assert found.word_perplexity == pytest.approx(8**2)  # two tokens per word
    assert _perplexity(1e4).perplexity == math.inf
