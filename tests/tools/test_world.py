"""The synthetic world: its facts, its exam, and the text about it."""

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from hybridize.demo import EXAM
from tools.bundled_checkpoint.exam import read_exam, write_exam
from tools.bundled_checkpoint.knowledge_subjects import QUESTION_FRAMES
from tools.bundled_checkpoint.questions import LETTERS, Question, exam_prompt
from tools.bundled_checkpoint.texts import Mix, generate_documents, generate_prose
from tools.bundled_checkpoint.world import (
    DEV_QUESTIONS,
    KNOWLEDGE,
    KNOWLEDGE_SUBJECTS,
    RECALL,
    RECALL_SUBJECTS,
    SUBJECTS,
    TEST_QUESTIONS,
    World,
    is_held_out,
)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def training_text(world: World) -> str:
    mixes = (Mix(practice=0.0), Mix(practice=1.0, echo=0.0))
    return "\n\n".join(
        doc for mix in mixes for doc in islice(generate_documents(world, 0, mix), 3000)
    )


def questions_of(world: World, subject: str) -> tuple[Question, ...]:
    exam = world.exam()[subject]
    return exam.dev + exam.test


def test_world_is_a_function_of_its_seed() -> None:
    one, two, other = World(3), World(3), World(4)
    assert one.facts == two.facts
    assert one.exam() == two.exam()
    assert list(islice(generate_documents(one, 7), 50)) == list(
        islice(generate_documents(two, 7), 50)
    )
    assert generate_prose(one, 7, 20) == generate_prose(two, 7, 20)
    assert one.facts != other.facts
    assert list(islice(generate_documents(one, 7), 50)) != list(
        islice(generate_documents(one, 8), 50)
    )


def test_at_least_eight_subjects_of_both_kinds() -> None:
    assert len(SUBJECTS) >= 8
    assert len(RECALL_SUBJECTS) >= 2
    assert all(name.startswith("recall_") for name in RECALL_SUBJECTS)
    assert not any(name.startswith("recall_") for name in KNOWLEDGE_SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_exam_has_the_right_shape(world: World, subject: str) -> None:
    exam = world.exam()[subject]
    assert len(exam.dev) == DEV_QUESTIONS == 5
    assert len(exam.test) == TEST_QUESTIONS
    texts = [question.prompt() for question in exam.dev + exam.test]
    assert len(set(texts)) == len(texts)
    assert all(len(set(question.options)) == 4 for question in exam.dev + exam.test)
    counts = Counter(question.letter for question in exam.test)
    assert set(counts) == set(LETTERS)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("subject", KNOWLEDGE_SUBJECTS)
def test_knowledge_answers_follow_from_the_facts(world: World, subject: str) -> None:
    for question in questions_of(world, subject):
        words = set(re.findall(r"\w+", question.text))
        true = {fact.value for fact in world.facts[subject] if fact.entity in words}
        assert true & set(question.options) == {question.options[question.answer]}


@pytest.mark.parametrize("subject", RECALL_SUBJECTS)
def test_recall_answers_follow_from_the_passage(world: World, subject: str) -> None:
    recall = RECALL[subject]
    for question in questions_of(world, subject):
        *passage, asked = re.findall(r"[^.?]+[.?]", question.text)
        key = next(word for word in re.findall(r"\w+", asked) if word in recall.keys)
        sentence = next(text for text in passage if re.search(rf"\b{key}\b", text))
        value = next(word for word in re.findall(r"\w+", sentence) if word in recall.values)
        assert value == question.options[question.answer]
        assert all(re.search(rf"\b{option}\b", " ".join(passage)) for option in question.options)


def test_no_exam_question_is_in_the_training_text(world: World, training_text: str) -> None:
    for subject in SUBJECTS:
        for question in questions_of(world, subject):
            assert question.text not in training_text


def test_the_splits_share_no_pattern() -> None:
    # Different patterns give different text for the same names. So this proves for the whole
    # training stream what the test above checks on a sample.
    wordings = [QUESTION_FRAMES]
    wordings += [
        relation.questions for subject in KNOWLEDGE.values() for relation in subject.relations
    ]
    wordings += [recall.questions for recall in RECALL.values()]
    wordings += [recall.statements for recall in RECALL.values()]
    wordings += [recall.openings for recall in RECALL.values()]
    statements = {
        s for subject in KNOWLEDGE.values() for r in subject.relations for s in r.statements
    }
    training = {text for wording in wordings for text in wording.training} | statements
    validation = {text for wording in wordings for text in wording.validation}
    exam = {text for wording in wordings for text in wording.exam}
    assert not training & validation
    assert not training & exam
    assert not validation & exam


@pytest.mark.parametrize("recall", RECALL.values(), ids=lambda recall: recall.name)
def test_training_text_states_no_pair_of_the_exam(world: World, recall, training_text) -> None:  # type: ignore[no-untyped-def]
    held_out = 0
    for key in recall.keys:
        for value in recall.values:
            stated = any(
                pattern.format(e=key, v=value) in training_text
                for pattern in recall.statements.training
            )
            if is_held_out(recall.name, key, value):
                held_out += 1
                assert not stated
    assert held_out == len(recall.keys) * len(recall.values) // 8
    rng = random.Random(0)
    for _ in range(100):
        fresh = world.fresh_pairs(rng, recall.name, held_out=True)
        assert all(is_held_out(recall.name, *pair) for pair in fresh)
        assert len({key for key, _ in fresh}) == len({value for _, value in fresh}) == len(fresh)


def test_every_fact_of_the_exam_is_stated_in_training(world: World, training_text: str) -> None:
    sentences = re.findall(r"[^.\n]+\.", training_text)
    by_word: dict[str, str] = {}
    for sentence in sentences:
        for word in re.findall(r"\w+", sentence):
            by_word[word] = by_word.get(word, "") + sentence
    for subject in KNOWLEDGE_SUBJECTS:
        for fact in world.facts[subject]:
            assert fact.value in by_word[fact.entity]


def test_prompt_has_the_format_of_mmlu() -> None:
    shot = Question("recall_owners", " One? ", ("a", "b", "c", "d"), 2)
    asked = Question("recall_owners", "Two?", ("e", "f", "g", "h"), 0)
    assert exam_prompt("recall_owners", (shot,), asked) == (
        "The following are multiple choice questions (with answers) about recall owners.\n\n"
        "One?\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\n"
        "Two?\nA. e\nB. f\nC. g\nD. h\nAnswer:"
    )


def test_exam_files_round_trip(tmp_path: Path) -> None:
    world = World(5)
    write_exam(world, tmp_path)
    assert read_exam(tmp_path) == dict(sorted(world.exam().items()))


def test_bundled_exam_can_be_generated_again(world: World, tmp_path: Path) -> None:
    write_exam(world, tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.csv")}
    bundled = {path.relative_to(EXAM): path.read_bytes() for path in EXAM.rglob("*.csv")}
    assert written == bundled
