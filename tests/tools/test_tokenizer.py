"""The tokenizer of the bundled checkpoint."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tools.bundled_checkpoint.questions import exam_prompt
from tools.bundled_checkpoint.texts import generate_documents
from tools.bundled_checkpoint.tokenizer import build_tokenizer
from tools.bundled_checkpoint.trainer import training_tokenizer
from tools.bundled_checkpoint.world import SUBJECTS, World

TOY = build_tokenizer(["Answer: A B C D", "the word"], 64)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return training_tokenizer(World())


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    tokens = TOY.encode(text, add_special_tokens=False)
    assert TOY.decode(tokens) == text or any(special in text for special in TOY.all_special_tokens)


def test_known_words_are_single_tokens_and_other_words_are_bytes() -> None:
    assert TOY.tokenize("the word") == ["the", "Ġword"]
    assert TOY.tokenize("wörd") == ["w", "Ã", "¶", "r", "d"]


def test_text_starts_with_bos() -> None:
    assert TOY.encode("the")[0] == TOY.bos_token_id


def test_letters_are_one_distinct_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = tokenizer.encode("Answer:")
    seen = set()
    for letter in "ABCD":
        tokens = tokenizer.encode(f"Answer: {letter}")
        assert tokens[:-1] == prompt
        seen.add(tokens[-1])
    assert len(seen) == 4


def test_training_text_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in islice(generate_documents(World(), 1), 200):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokens) == text


def test_exam_prompts_fit_and_use_only_trained_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    world = World()
    trained = {
        t for text in islice(generate_documents(world, 0), 4000) for t in tokenizer.encode(text)
    }
    for subject in SUBJECTS:
        exam = world.exam()[subject]
        for question in exam.test:
            tokens = tokenizer.encode(exam_prompt(subject, exam.dev, question))
            assert len(tokens) <= 512
            assert set(tokens) <= trained
