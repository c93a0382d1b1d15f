"""A synthetic world: fixed facts, passages with new facts, and questions about both.

Six subjects have fixed facts (``KNOWLEDGE_SUBJECTS``), which a model can only answer from its
weights. Three subjects (``RECALL_SUBJECTS``) ask about a passage with newly drawn pairs, which a
model can only answer from its context. Everything is a pure function of seeds.

Held out for the exam: the question patterns of all subjects, and, for the recall subjects, the
passage patterns and the pairs that the passages state. No training text contains any of them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .knowledge_subjects import KNOWLEDGE_SUBJECT_LIST, QUESTION_FRAMES
from .questions import LETTERS, Question, SubjectExam
from .recall_subjects import PEOPLE, PLACES, RECALL_SUBJECT_LIST, THINGS
from .subjects import RecallSubject, Split

KNOWLEDGE = {subject.name: subject for subject in KNOWLEDGE_SUBJECT_LIST}
RECALL = {subject.name: subject for subject in RECALL_SUBJECT_LIST}
KNOWLEDGE_SUBJECTS, RECALL_SUBJECTS = tuple(KNOWLEDGE), tuple(RECALL)
SUBJECTS = KNOWLEDGE_SUBJECTS + RECALL_SUBJECTS

ENTITIES_PER_SUBJECT = 28
INVENTED_VALUES = 12
DEV_QUESTIONS = 5
TEST_QUESTIONS = 45
PASSAGE_FACTS = (4, 5)
"""Minimum and maximum number of facts in a passage."""

_HELD_OUT_FRACTION = 8
"""One in this many pairs of key and value is reserved for the passages of the exam."""


@dataclass(frozen=True)
class Fact:
    """A fixed fact: the ``noun`` of ``entity`` is ``value``."""

    entity: str
    noun: str
    value: str


class World:
    """The facts of one seed, and the questions about them.

    Args:
        seed: determines the names, the facts and the exam.

    Attributes:
        facts: the fixed facts of each knowledge subject, ``2 * ENTITIES_PER_SUBJECT`` of them.
        pools: the values that each ``(subject, noun)`` draws from.
        words: everything that can be an option of a question, once each.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.facts: dict[str, tuple[Fact, ...]] = {}
        self.pools: dict[tuple[str, str], tuple[str, ...]] = {}
        rng = random.Random(f"world {seed}")
        names = _invented_names(rng)
        for subject in KNOWLEDGE.values():
            entities = [next(names) for _ in range(ENTITIES_PER_SUBJECT)]
            facts: list[Fact] = []
            for relation in subject.relations:
                pool = relation.values or tuple(next(names) for _ in range(INVENTED_VALUES))
                self.pools[subject.name, relation.noun] = pool
                # Each value occurs about equally often, so that guessing does not help.
                repeats = -(-len(entities) // len(pool))
                values = rng.sample(list(pool) * repeats, len(entities))
                facts += [
                    Fact(entity, relation.noun, value)
                    for entity, value in zip(entities, values, strict=True)
                ]
            self.facts[subject.name] = tuple(facts)
        words = [*PLACES, *THINGS, *PEOPLE, *(v for pool in self.pools.values() for v in pool)]
        self.words = tuple(dict.fromkeys(words))

    def question(self, rng: random.Random, subject: str, split: Split) -> Question:
        """Draw a question about a subject, with the patterns of a split."""
        if subject in self.facts:
            return self.fact_question(rng, subject, rng.choice(self.facts[subject]), split)
        return self.passage_question(rng, subject, split)

    def fact_question(self, rng: random.Random, subject: str, fact: Fact, split: Split) -> Question:
        """Ask about a fixed fact; all options come from the same pool."""
        pattern = rng.choice(question_patterns(subject, fact.noun, split))
        text = pattern.format(e=fact.entity, noun=fact.noun, kind=KNOWLEDGE[subject].kind)
        pool = [value for value in self.pools[subject, fact.noun] if value != fact.value]
        return multiple_choice(rng, subject, text, fact.value, pool)

    def passage_question(self, rng: random.Random, subject: str, split: Split) -> Question:
        """Draw a passage and ask about one of its pairs; all options occur in the passage."""
        recall = RECALL[subject]
        pairs = self.fresh_pairs(rng, subject, held_out=split == "exam")
        passage = passage_text(rng, recall, pairs, split)
        key, value = rng.choice(pairs)
        text = f"{passage} {rng.choice(recall.questions.of(split)).format(e=key)}"
        return multiple_choice(
            rng, subject, text, value, [other for _, other in pairs if other != value]
        )

    def fresh_pairs(
        self,
        rng: random.Random,
        subject: str,
        *,
        held_out: bool,
        words: int | None = None,
        least: int = PASSAGE_FACTS[0],
    ) -> list[tuple[str, str]]:
        """Draw the pairs of a passage, all held out or none; no key and no value occurs twice.

        Args:
            rng: the random generator.
            subject: a recall subject.
            held_out: whether to draw pairs that are reserved for the exam, or other pairs.
            words: how many of the keys, and of the values, to draw from; None for all.
            least: the minimum number of pairs.
        """
        recall = RECALL[subject]
        size = rng.randint(least, PASSAGE_FACTS[1])
        while True:
            keys = rng.sample(recall.keys[:words], size)
            values = rng.sample(recall.values[:words], len(recall.values[:words]))
            pairs: list[tuple[str, str]] = []
            for key in keys:
                value = next((v for v in values if is_held_out(subject, key, v) == held_out), None)
                if value is None:
                    break
                values.remove(value)
                pairs.append((key, value))
            else:
                return pairs

    def exam(self) -> dict[str, SubjectExam]:
        """Return ``DEV_QUESTIONS`` shots and ``TEST_QUESTIONS`` questions for each subject.

        Each letter is the right answer equally often, and no question occurs twice.
        """
        return {subject: self._subject_exam(subject) for subject in SUBJECTS}

    def _subject_exam(self, subject: str) -> SubjectExam:
        rng = random.Random(f"exam {self.seed} {subject}")
        total = DEV_QUESTIONS + TEST_QUESTIONS
        if subject in self.facts:
            facts = rng.sample(self.facts[subject], total)
            drawn = [self.fact_question(rng, subject, fact, "exam") for fact in facts]
        else:
            drawn = [self.passage_question(rng, subject, "exam") for _ in range(total)]
        dev = _balance(rng, drawn[:DEV_QUESTIONS])
        return SubjectExam(dev, _balance(rng, drawn[DEV_QUESTIONS:]))


def is_held_out(subject: str, key: str, value: str) -> bool:
    """Return whether a recall pair is reserved for the exam and absent from training text."""
    recall = RECALL[subject]
    # One subject has people as keys and things as values; another has things as keys and people as
    # values. The sum is symmetric, so that both subjects hold out the same pairs.
    return (recall.keys.index(key) + recall.values.index(value)) % _HELD_OUT_FRACTION == 0


def question_patterns(subject: str, noun: str, split: Split) -> tuple[str, ...]:
    """Return the patterns of questions about one relation of a knowledge subject."""
    relation = next(r for r in KNOWLEDGE[subject].relations if r.noun == noun)
    return QUESTION_FRAMES.of(split) + relation.questions.of(split)


def passage_text(
    rng: random.Random, recall: RecallSubject, pairs: list[tuple[str, str]], split: Split
) -> str:
    """Return a passage that states the pairs, with the patterns of a split."""
    opening = rng.choice(recall.openings.of(split))
    pattern = rng.choice(recall.statements.of(split))
    return " ".join([opening, *(pattern.format(e=key, v=value) for key, value in pairs)])


def multiple_choice(
    rng: random.Random, subject: str, text: str, right: str, wrong: list[str]
) -> Question:
    """Return a question with the right option and three of the wrong ones, in random order."""
    options = [right, *rng.sample(wrong, 3)]
    rng.shuffle(options)
    return Question(subject, text, (*options,), options.index(right))  # type: ignore[arg-type]


def _balance(rng: random.Random, questions: list[Question]) -> tuple[Question, ...]:
    """Move the right options such that all letters are right equally often (or once more)."""
    letters = [index % len(LETTERS) for index in range(len(questions))]
    rng.shuffle(letters)
    balanced = []
    for question, answer in zip(questions, letters, strict=True):
        options = list(question.options)
        options[question.answer], options[answer] = options[answer], options[question.answer]
        balanced.append(
            Question(question.subject, question.text, (*options,), answer)  # type: ignore[arg-type]
        )
    return tuple(balanced)


def _invented_names(rng: random.Random) -> Iterator[str]:
    """Yield invented names that are not English words, each once."""
    onsets = [*"bdfgklmnprstvz", "br", "dr", "kr", "tr"]
    vowels, codas = "aeiou", "klmnrsx"
    seen = set()
    while True:
        name = "".join(
            (
                rng.choice(onsets), rng.choice(vowels), rng.choice(onsets[:14]),
                rng.choice(vowels), rng.choice(codas),
            )
        ).capitalize()  # fmt: skip
        if name not in seen:
            seen.add(name)
            yield name
