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
"""The fixed cost of one pass, in tokens: a CPU needs about as long to read the weights."""

GPU_PASS = 512
"""The same on a GPU, which computes faster than it launches kernels (an estimate)."""

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


def plan(
    questions: Sequence[Question], batch_size: int, *, share: bool, pass_cost: int = PASS
) -> list[Run]:
    """Return the passes over all questions.

    Args:
        questions: the questions; those with a common prefix next to each other.
        batch_size: maximum number of sequences in a pass, unless one question has more.
        share: whether the model can continue from a copy of its cache; if not, each sequence is
            read as a whole.
        pass_cost: the fixed cost of one pass, in tokens.
    """
    batching = _Batching(batch_size, share, pass_cost)
    if not share:
        return [Run((), tuple(batching.batches(questions, 0)))]
    runs, alone = [], []
    for prefix, members in _with_common_prefix(questions):
        if prefix * (len(members) - 1) > pass_cost:
            batches = tuple(batching.batches(members, prefix))
            runs.append(Run(tuple(members[0].context[:prefix]), batches))
        else:
            alone += members
    batches = tuple(batching.batches(alone, 0))
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


@dataclass(frozen=True)
class _Batching:
    """Groups the questions of a run; the arguments are those of `plan`."""

    batch_size: int
    share: bool
    pass_cost: int

    def batches(self, questions: Sequence[Question], prefix: int) -> Iterator[Batch]:
        """Group questions of similar length, the longest first."""
        batch: list[Question] = []
        for question in sorted(questions, key=lambda each: -each.length):
            together = [*batch, question]
            full = sum(len(each.rows) for each in together) > self.batch_size
            if batch and (full or self._separate_is_cheaper(batch, question, prefix)):
                yield Batch(tuple(batch), self._choose_shared(batch, prefix)[1])
                together = [question]
            batch = together
        if batch:
            yield Batch(tuple(batch), self._choose_shared(batch, prefix)[1])

    def _separate_is_cheaper(
        self, batch: Sequence[Question], question: Question, prefix: int
    ) -> bool:
        together, first, second = (
            self._choose_shared(each, prefix)[0] for each in ([*batch, question], batch, [question])
        )
        return first + second < together

    def _choose_shared(self, batch: Sequence[Question], prefix: int) -> tuple[int, int]:
        """Return a batch's cost in tokens, and how many tokens to read once per question."""
        longest = max(question.length for question in batch)
        rows = sum(len(question.rows) for question in batch)
        plain = rows * (longest - prefix) + self.pass_cost, prefix
        if not self.share:
            return plain
        shared = min(question.shareable for question in batch)
        once, per_row = len(batch) * (shared - prefix), rows * (longest - shared)
        return min(plain, (once + per_row + 2 * self.pass_cost, shared))


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
