"""Plan how a model reads many prompts, so that what they share is read once.

The answers to one question share the question, and the questions of one subject share its solved
examples. A plan has up to three kinds of passes: over the prefix of a run of questions; over the
rest of each question; over the answers. Each pass continues from a copy of the caches of the pass
before it. All rows of a pass are equally far in their texts, so only the ends of the rows are
padded, which no causal model sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PASS = 32
"""The fixed cost of one pass, in tokens: on a CPU, reading the weights takes as long."""

MIN_PREFIX = 64
"""A shorter common prefix is not worth a run of its own."""


@dataclass(frozen=True)
class Row:
    """Answers that differ only in their last token, so that the model reads them once.

    Attributes:
        inner: the answers' tokens without the last one; may be empty.
        last: the last token of each answer.
    """

    inner: tuple[int, ...]
    last: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A context, at least one token, and the answers that may follow it."""

    context: Sequence[int]
    rows: tuple[Row, ...]

    @property
    def length(self) -> int:
        """The number of tokens of the longest sequence that the model reads."""
        return len(self.context) + max(len(row.inner) for row in self.rows)

    @property
    def shareable(self) -> int:
        """The number of tokens before the first scored position."""
        return len(self.context) - 1


@dataclass(frozen=True)
class Batch:
    """Questions that are scored together; the first ``shared`` tokens of each are read once."""

    questions: tuple[Question, ...]
    shared: int


@dataclass(frozen=True)
class Run:
    """Batches whose questions all begin with the same tokens."""

    prefix: tuple[int, ...]
    batches: tuple[Batch, ...]


def plan(questions: Sequence[Question], batch_size: int, *, share: bool) -> list[Run]:
    """Return the passes over all questions.

    Args:
        questions: the questions; those with a common prefix next to each other.
        batch_size: maximum number of sequences in a pass, unless one question has more.
        share: whether the model can continue from a copy of its cache; if not, each sequence is
            read as a whole.
    """
    if not share:
        return [Run((), tuple(_batches(questions, 0, batch_size, share=False)))]
    runs, alone = [], []
    for prefix, members in _with_common_prefix(questions):
        if prefix:
            batches = tuple(_batches(members, prefix, batch_size, share=True))
            runs.append(Run(tuple(members[0].context[:prefix]), batches))
        else:
            alone += members
    batches = tuple(_batches(alone, 0, batch_size, share=True))
    return [Run((), batches), *runs] if batches else runs


def _with_common_prefix(questions: Sequence[Question]) -> Iterator[tuple[int, list[Question]]]:
    """Split the questions into runs; yield each run with the length of its common prefix."""
    members: list[Question] = []
    prefix = 0
    for question in questions:
        if members:
            common = _common(members[0].context, question.context)
            common = min(common, members[0].shareable, question.shareable)
            # A much shorter prefix begins another run, for example the next subject of an exam.
            if common >= max(MIN_PREFIX, prefix // 2):
                prefix = min(prefix, common) if prefix else common
                members.append(question)
                continue
            yield prefix, members
        members, prefix = [question], 0
    if members:
        yield prefix, members


def _batches(
    questions: Sequence[Question], prefix: int, batch_size: int, *, share: bool
) -> Iterator[Batch]:
    """Group questions of similar length, the longest first."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda each: -each.length):
        together = [*batch, question]
        full = sum(len(each.rows) for each in together) > batch_size
        if batch and (full or _separate_is_cheaper(batch, question, prefix, share)):
            yield Batch(tuple(batch), _choose_shared(batch, prefix, share)[1])
            together = [question]
        batch = together
    if batch:
        yield Batch(tuple(batch), _choose_shared(batch, prefix, share)[1])


def _separate_is_cheaper(
    batch: Sequence[Question], question: Question, prefix: int, share: bool
) -> bool:
    together, first, second = (
        _choose_shared(each, prefix, share)[0] for each in ([*batch, question], batch, [question])
    )
    return first + second < together


def _choose_shared(batch: Sequence[Question], prefix: int, share: bool) -> tuple[int, int]:
    """Return the cost of a batch, in tokens, and the number of tokens to read once per question."""
    longest = max(question.length for question in batch)
    rows = sum(len(question.rows) for question in batch)
    plain = rows * (longest - prefix) + PASS, prefix
    if not share:
        return plain
    shared = min(question.shareable for question in batch)
    two_passes = len(batch) * (shared - prefix) + rows * (longest - shared) + 2 * PASS
    return min(plain, (two_passes, shared))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of equal tokens at the beginning."""
    equal, different = 0, min(len(first), len(second)) + 1
    while different - equal > 1:
        middle = (equal + different) // 2
        if first[equal:middle] == second[equal:middle]:
            equal = middle
        else:
            different = middle
    return equal
