"""Scores of answers against plain forward passes in float64, one sequence at a time."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from hybridize.evals import prefix_scorer
from hybridize.evals.prefix_plan import Question, Row
from hybridize.evals.prefix_scorer import PrefixScorer
from hybridize.modeling.cache.format import CacheFormat
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.model import HybridForCausalLM


def _stock(architecture: str, **changes: Any) -> Any:
    model = AutoModelForCausalLM.from_config(tiny.stock_config(architecture, **changes)).eval()
    tiny.randomize(model)
    return model


def _hybrid() -> Any:
    config = HybridConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        layout="M-*-M-",
        attention={"num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
        mamba={"num_heads": 4, "head_dim": 8, "n_groups": 2, "d_state": 16},
        mlp={"intermediate_size": 48},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = HybridForCausalLM(config).eval()
    tiny.randomize(model)
    return model


MODELS = {
    "hybrid": _hybrid,
    "llama": lambda: _stock("llama"),
    "sliding window": lambda: _stock("mistral", sliding_window=11),
    "stateful": lambda: _stock("bamba"),
}


def _questions() -> list[Question]:
    """Questions with and without common prefixes, with answers of one and more tokens."""
    rng = random.Random(3)

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(3, tiny.VOCAB), k=count))

    def rows() -> tuple[Row, ...]:
        if rng.random() < 0.3:  # letters
            return (Row((), some(4)),)
        return tuple(Row(some(rng.randint(0, 7)), some(rng.randint(1, 2))) for _ in range(4))

    contexts = [some(rng.randint(1, 30)) for _ in range(6)]
    for _ in range(2):
        prefix = some(rng.randint(64, 90))
        contexts += [prefix + some(rng.randint(1, 30)) for _ in range(4)]
    return [Question(context, rows()) for context in contexts]


def _expected(model: Any, questions: list[Question]) -> list[list[list[tuple[float, bool]]]]:
    def score(context: tuple[int, ...], answer: tuple[int, ...]) -> tuple[float, bool]:
        with torch.no_grad():
            logits = model(torch.tensor([context + answer[:-1]])).logits[0, -len(answer) :]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
        return chosen.sum().item(), logits.argmax(-1).tolist() == list(answer)

    return [
        [
            [score(tuple(question.context), (*row.inner, last)) for last in row.last]
            for row in question.rows
        ]
        for question in questions
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_equal_those_of_separate_passes(name: str, batch_size: int) -> None:
    model = MODELS[name]().double()
    questions = _questions()
    scored: list[int] = []
    found = PrefixScorer(model).score(questions, batch_size, scored.append)
    assert sum(scored) == sum(len(question.rows) for question in questions)
    for ours, theirs in zip(found, _expected(model, questions), strict=True):
        for our_row, their_row in zip(ours, theirs, strict=True):
            assert [greedy for _, greedy in our_row] == [greedy for _, greedy in their_row]
            expected = [score for score, _ in their_row]
            # The scan of a hybrid and the softmax of the scores are in float32.
            assert [score for score, _ in our_row] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_long_texts_in_pieces_have_the_same_scores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_scorer, "LOGIT_BYTES", 0)
    monkeypatch.setattr(prefix_scorer, "MIN_PIECE", 5)
    model = MODELS[name]().double()
    answers = [tuple(row) for row in tiny.tokens(3, 40).tolist()]
    questions = [
        Question((1,), (Row(answer[:-1][:length], answer[-1:]),))
        for answer, length in zip(answers, (39, 38, 17), strict=True)
    ]
    kept = []
    forward = model.forward

    def record(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        kept.append(output.logits.shape[1])
        return output

    scorer = PrefixScorer(model)
    monkeypatch.setattr(model, "forward", record)
    found = scorer.score(questions, 2, lambda _count: None)
    assert max(kept) == (5 if scorer.shares else 40)
    for ours, theirs in zip(found, _expected(model, questions), strict=True):
        assert ours[0][0][0] == pytest.approx(theirs[0][0][0], abs=1e-4)
        assert ours[0][0][1] == theirs[0][0][1]


@pytest.mark.parametrize("name", MODELS)
def test_shared_tokens_are_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    read = []
    forward = model.forward

    def record(*arguments: Any, **options: Any) -> Any:
        read.append(options["input_ids"].numel())
        return forward(*arguments, **options)

    scorer = PrefixScorer(model)
    monkeypatch.setattr(model, "forward", record)
    prefix = tuple(tiny.tokens(1, 80)[0].tolist())
    questions = [
        Question(prefix + (question,) * 50, tuple(Row((answer,), (5,)) for answer in range(4)))
        for question in range(10, 13)
    ]
    scorer.score(questions, 8, lambda _count: None)
    assert scorer.shares == (name != "stateful")
    assert sum(read) == (80 + 3 * 49 + 12 * 2 if scorer.shares else 12 * 131)


def test_a_lossy_cache_is_written_and_read_as_in_chunks_of_one_text() -> None:
    model = _hybrid()
    model.model.cache_format = CacheFormat("fp8", "fp8")
    question = Question(tuple(tiny.tokens(1, 150)[0].tolist()), (Row((), (5, 6)), Row((7,), (8,))))
    scorer = PrefixScorer(model)
    assert not scorer.shares
    ((letters, other),) = scorer.score([question], 8, lambda _count: None)
    (((alone,),),) = scorer.score(
        [Question(question.context, question.rows[1:])], 1, lambda _count: None
    )
    assert other[0][0] == pytest.approx(alone[0], abs=1e-4)
    exact = _expected(_hybrid(), [question])[0]
    assert abs(letters[0][0] - exact[0][0][0]) > 1e-4  # FP8 changes the scores
