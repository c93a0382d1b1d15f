"""The parts of a subject of the synthetic world: relations and sentence patterns.

Sentence patterns belong to one of three splits that share no pattern. *Training* patterns appear in
the training text, *validation* patterns measure progress during training, and *exam* patterns
appear only in the exam. In a pattern, ``{e}`` is the entity and ``{v}`` the value. ``{kind}`` is
the subject's word for the entity, such as "country"; ``{noun}`` is the relation's word for the
value, such as "capital".

No pattern begins a line with a name: the tokens of names include a leading space.
"""

from dataclasses import dataclass
from typing import Literal

Split = Literal["training", "validation", "exam"]


@dataclass(frozen=True)
class Wording:
    """Sentence patterns for one purpose, one set for each split."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    exam: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        """Return the patterns of a split."""
        patterns: tuple[str, ...] = getattr(self, split)
        return patterns


@dataclass(frozen=True)
class Relation:
    """A property that every entity of a knowledge subject has.

    Attributes:
        noun: the name of the property, such as "capital".
        values: the pool that values are drawn from; an empty pool is filled with invented names.
        statements: sentences that state the fact; all of them are training text.
        questions: questions for this relation, in addition to ``QUESTION_FRAMES``.
    """

    noun: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: Wording


@dataclass(frozen=True)
class KnowledgeSubject:
    """A subject with fixed facts, which a model can store in its weights."""

    name: str
    kind: str
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class RecallSubject:
    """A subject with new facts in each passage, which only the context contains.

    Attributes:
        name: the subject's name.
        keys: the words that a question names (``{e}``).
        values: the words that a question asks for (``{v}``).
        openings: the first sentence of a passage.
        statements: the other sentences of a passage, which all follow one pattern. The value
            comes before the key, because a small model learns to find the word before a given
            word much earlier than the word after it.
        questions: the question after the passage.
    """

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    openings: Wording
    statements: Wording
    questions: Wording


def words(text: str) -> tuple[str, ...]:
    """Split a text at spaces."""
    return tuple(text.split())
