"""A small synthetic world: facts to learn by heart, passages to recall from, and text about both.

Six subjects hold fixed facts (``KNOWLEDGE_SUBJECTS``), which a model can only answer from its
weights. Three (``RECALL_SUBJECTS``) ask about a passage whose pairs are drawn afresh each time,
which a model can only answer from its context. All text is a pure function of seeds.

What the exam holds out: its question patterns, for every subject; its passage patterns, and the
pairs that its passages state, for the recall subjects. No training text contains any of them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from .wording import (
    KNOWLEDGE,
    PEOPLE,
    PLACES,
    QUESTION_FRAMES,
    RECALL,
    THINGS,
    KnowledgeSubject,
    RecallSubject,
    Split,
)

KNOWLEDGE_SUBJECTS = tuple(subject.name for subject in KNOWLEDGE)
RECALL_SUBJECTS = tuple(subject.name for subject in RECALL)
SUBJECTS = KNOWLEDGE_SUBJECTS + RECALL_SUBJECTS

LETTERS = "ABCD"
ENTITIES_PER_SUBJECT = 28
INVENTED_VALUES = 12
DEV_QUESTIONS = 5
TEST_QUESTIONS = 45
PASSAGE_FACTS = (4, 5)
"""Least and most facts in a passage."""

TRAINING_SEED = 0
"""The seed of the text that the bundled checkpoint read; any other gives it new text."""

_HELD_OUT_FRACTION = 8
"""One pair of key and value in this many is kept for the exam's passages."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; ``answer`` indexes the four ``options``."""

    subject: str
    text: str
    options: tuple[str, str, str, str]
    answer: int

    @property
    def letter(self) -> str:
        """The answer as the letter that the exam prints."""
        return LETTERS[self.answer]

    def prompt(self) -> str:
        """The question as MMLU prints it, up to and including ``Answer:``."""
        options = "\n".join(
            f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True)
        )
        return f"{self.text.strip()}\n{options}\nAnswer:"


@dataclass(frozen=True)
class SubjectExam:
    """The questions of one subject: ``dev`` gives the shots, ``test`` the score."""

    dev: tuple[Question, ...]
    test: tuple[Question, ...]


@dataclass
class Document:
    """A text, and where in it the reader is asked something.

    Attributes:
        text: the text so far.
        answers: ``(start, end)`` of each answer in ``text``, in characters, leading space included.
        prose: whether the rest of the text, too, says things worth predicting.
    """

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)
    prose: bool = False

    def say(self, text: str) -> None:
        """Append text that is given to the reader."""
        self.text += text

    def answer(self, text: str) -> None:
        """Append, after a space, text that the reader should have known."""
        start = len(self.text)
        self.text += f" {text}"
        self.answers.append((start, len(self.text)))


@dataclass(frozen=True)
class Mix:
    """What a stream of documents is made of.

    Attributes:
        drill: share of recall drills, drawn before all else.
        recall: share of recall subjects in the rest.
        practice: share of practice documents in the rest.
        echo: share of the practice questions that are echoes.
        max_questions: most questions in one exam-format document.
        words: how many words echoes and drills choose from; all of them if ``None``.
    """

    drill: float = 0.1
    recall: float = 0.4
    practice: float = 0.1
    echo: float = 0.2
    max_questions: int = 6
    words: int | None = None


@dataclass(frozen=True)
class Fact:
    """A fixed fact: the ``noun`` of ``entity`` is ``value``."""

    entity: str
    noun: str
    value: str


def exam_prompt(subject: str, shots: tuple[Question, ...], question: Question) -> str:
    """Build the few-shot prompt that lm-eval's task ``mmlu`` builds, ending in ``Answer:``."""
    solved = [f"{shot.prompt()} {shot.letter}" for shot in shots]
    return exam_header(subject) + "\n\n".join([*solved, question.prompt()])


def exam_header(subject: str) -> str:
    """MMLU's description line for a subject, with the blank line after it."""
    return (
        "The following are multiple choice questions (with answers) about "
        f"{subject.replace('_', ' ')}.\n\n"
    )


class World:
    """The facts of one seed, and everything that is said about them.

    Args:
        seed: decides the names, the facts and the exam.

    Attributes:
        facts: the fixed facts of each knowledge subject, ``2 * ENTITIES_PER_SUBJECT`` of them.
        pools: the values each ``(subject, noun)`` draws from.
        words: everything that can be an option of a question, once each.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.facts: dict[str, tuple[Fact, ...]] = {}
        self.pools: dict[tuple[str, str], tuple[str, ...]] = {}
        rng = random.Random(f"world {seed}")
        names = _invented_names(rng)
        for subject in KNOWLEDGE:
            entities = [next(names) for _ in range(ENTITIES_PER_SUBJECT)]
            facts: list[Fact] = []
            for relation in subject.relations:
                pool = relation.values or tuple(next(names) for _ in range(INVENTED_VALUES))
                self.pools[subject.name, relation.noun] = pool
                # Each value serves about equally many entities, so that none is a good guess.
                repeats = -(-len(entities) // len(pool))
                values = rng.sample(list(pool) * repeats, len(entities))
                facts += [
                    Fact(entity, relation.noun, value)
                    for entity, value in zip(entities, values, strict=True)
                ]
            self.facts[subject.name] = tuple(facts)
        words = [*PLACES, *THINGS, *PEOPLE, *(v for pool in self.pools.values() for v in pool)]
        self.words = tuple(dict.fromkeys(words))

    # Questions ---------------------------------------------------------------------------------

    def question(self, rng: random.Random, subject: str, split: Split) -> Question:
        """Draw a question on a subject, in the wording of a split."""
        if subject in self.facts:
            return self.fact_question(rng, subject, rng.choice(self.facts[subject]), split)
        return self.passage_question(rng, subject, split)

    def fact_question(self, rng: random.Random, subject: str, fact: Fact, split: Split) -> Question:
        """Ask about a fixed fact; the wrong options come from the same pool as the right one."""
        pattern = rng.choice(_question_patterns(subject, fact.noun, split))
        text = pattern.format(e=fact.entity, noun=fact.noun, kind=_knowledge(subject).kind)
        pool = [value for value in self.pools[subject, fact.noun] if value != fact.value]
        return _choose(rng, subject, text, fact.value, pool)

    def passage_question(self, rng: random.Random, subject: str, split: Split) -> Question:
        """Make up a passage and ask about one of its pairs; all options occur in the passage."""
        recall = _recall(subject)
        pairs = self.fresh_pairs(rng, subject, held_out=split == "exam")
        passage = _passage(rng, recall, pairs, split)
        key, value = rng.choice(pairs)
        text = f"{passage} {rng.choice(recall.questions.of(split)).format(e=key)}"
        return _choose(rng, subject, text, value, [other for _, other in pairs if other != value])

    def fresh_pairs(
        self,
        rng: random.Random,
        subject: str,
        *,
        held_out: bool,
        words: int | None = None,
        least: int = PASSAGE_FACTS[0],
    ) -> list[tuple[str, str]]:
        """Draw the pairs of a passage: no key and no value twice, all held out or none.

        Args:
            rng: what to draw with.
            subject: a recall subject.
            held_out: whether the pairs are those kept for the exam, or the others.
            words: how many of the keys, and of the values, to draw from; all if ``None``.
            least: fewest pairs to draw.
        """
        recall = _recall(subject)
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

    # The exam ----------------------------------------------------------------------------------

    def exam(self) -> dict[str, SubjectExam]:
        """The exam: for each subject ``DEV_QUESTIONS`` shots and ``TEST_QUESTIONS`` questions.

        The right answers fall evenly on the four letters, and no question comes twice.
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

    # Text --------------------------------------------------------------------------------------

    def documents(self, seed: int, mix: Mix | None = None) -> Iterator[str]:
        """Yield documents without end: prose, passages, short answers, exam format and practice.

        With a seed of one's own this is text like the checkpoint's training text that the
        checkpoint has not read, for calibration and distillation; for perplexity see ``prose``.

        Args:
            seed: decides the whole stream.
            mix: what the stream is made of.
        """
        mix = mix or Mix()
        for index in count():
            yield self.document(random.Random(f"text {self.seed} {seed} {index}"), mix).text

    def document(self, rng: random.Random, mix: Mix) -> Document:
        """Draw one document: drill, practice, and else 60% exam, 15% short answers, 25% prose."""
        if rng.random() < mix.drill:
            return self.drill(rng, rng.choice(RECALL_SUBJECTS), mix.words)
        subjects = RECALL_SUBJECTS if rng.random() < mix.recall else KNOWLEDGE_SUBJECTS
        subject = rng.choice(subjects)
        if rng.random() < mix.practice:
            return self.practice_document(rng, subject, mix)
        draw = rng.random()
        if draw < 0.6:
            return self.exam_document(rng, subject, rng.randint(1, mix.max_questions))
        if draw < 0.75:
            return self.short_answers(rng, subject)
        return self.prose_document(rng, subject)

    def drill(self, rng: random.Random, subject: str, words: int | None = None) -> Document:
        """Write pairs and ask for values: recall alone, without options and letters.

        The three forms are steps of one ladder: bare pairs, pairs in sentences, and questions. A
        key may be asked for again, so that what is left over gives nothing away.
        """
        recall = _recall(subject)
        pairs = self.fresh_pairs(rng, subject, held_out=False, words=words, least=3)
        queries = rng.choices(pairs, k=4)
        form = rng.choice(("list", "sentences", "questions"))
        if form == "list":
            document = Document("".join(f" {value} {key}," for key, value in pairs))
        else:
            document = Document(_passage(rng, recall, pairs, "training"))
        if form == "questions":
            _ask_each(document, rng, recall, queries)
            return document
        for key, value in queries:
            document.say(f" {key}:")
            document.answer(value)
            document.say(",")
        return document

    def practice_document(self, rng: random.Random, subject: str, mix: Mix) -> Document:
        """Write multiple-choice questions in which each option carries its verdict.

        "Does this option fit?" is what a model must know at each option before it can name a
        letter. Asked for it there, four times a question, a small model learns in minutes what
        it does not learn from letters alone. The simplest questions, echoes, name the option.
        """
        document = Document()
        for _ in range(3):
            echo = rng.random() < mix.echo
            question = (
                _echo_question(rng, self.words[: mix.words])
                if echo
                else self.question(rng, subject, "training")
            )
            _judge(document, question)
        return document

    def exam_document(
        self, rng: random.Random, subject: str, questions: int, split: Split = "training"
    ) -> Document:
        """Write solved multiple-choice questions on one subject, in MMLU's layout."""
        document = Document(exam_header(subject))
        for index in range(questions):
            question = self.question(rng, subject, split)
            document.say(("\n\n" if index else "") + question.prompt())
            document.answer(question.letter)
        return document

    def short_answers(self, rng: random.Random, subject: str) -> Document:
        """Write questions answered by the value itself, in training wording."""
        document = Document()
        if subject in self.facts:
            document.say(f"Some questions about {subject}.")
            for fact in rng.sample(self.facts[subject], 4):
                pattern = rng.choice(_question_patterns(subject, fact.noun, "training"))
                asked = pattern.format(e=fact.entity, noun=fact.noun, kind=_knowledge(subject).kind)
                document.say(f"\nQuestion: {asked}\nReply:")
                document.answer(fact.value)
            return document
        recall = _recall(subject)
        pairs = self.fresh_pairs(rng, subject, held_out=False)
        document.say(_passage(rng, recall, pairs, "training"))
        _ask_each(document, rng, recall, rng.sample(pairs, len(pairs)))
        return document

    def prose_document(self, rng: random.Random, subject: str) -> Document:
        """Write a paragraph: fixed facts of a subject, or a passage told twice in other words."""
        document = Document(prose=True)
        if subject in self.facts:
            document.say(f"Some facts about {subject}.")
            kind = _knowledge(subject).kind
            for fact in rng.sample(self.facts[subject], rng.randint(5, 8)):
                pattern = rng.choice(_statement_patterns(subject, fact.noun))
                _restate(document, pattern.replace("{kind}", kind), fact.entity, fact.value)
            return document
        recall = _recall(subject)
        pairs = self.fresh_pairs(rng, subject, held_out=False)
        document.say(_passage(rng, recall, pairs, "training") + "\nIn other words:")
        pattern = rng.choice(recall.statements.training)
        for pair in rng.sample(pairs, len(pairs)):
            _restate(document, pattern, *pair)
        return document

    def prose(self, seed: int, documents: int) -> str:
        """Held-out running text for perplexity: prose alone, a blank line between documents.

        Args:
            seed: decides the text; anything but ``TRAINING_SEED``.
            documents: how many, the subjects taking turns.
        """
        rng = random.Random(f"prose {self.seed} {seed}")
        return "\n\n".join(
            self.prose_document(rng, SUBJECTS[index % len(SUBJECTS)]).text
            for index in range(documents)
        )


def is_held_out(subject: str, key: str, value: str) -> bool:
    """Whether a recall pair is kept for the exam and never stated in training text."""
    recall = _recall(subject)
    # People and things meet in two subjects, in either role: the sum makes the rule symmetric,
    # so that a pair held out of one subject is not told by the other.
    return (recall.keys.index(key) + recall.values.index(value)) % _HELD_OUT_FRACTION == 0


def _knowledge(name: str) -> KnowledgeSubject:
    return next(subject for subject in KNOWLEDGE if subject.name == name)


def _recall(name: str) -> RecallSubject:
    return next(subject for subject in RECALL if subject.name == name)


def _question_patterns(subject: str, noun: str, split: Split) -> tuple[str, ...]:
    relation = next(r for r in _knowledge(subject).relations if r.noun == noun)
    return QUESTION_FRAMES.of(split) + relation.questions.of(split)


def _statement_patterns(subject: str, noun: str) -> tuple[str, ...]:
    return next(r for r in _knowledge(subject).relations if r.noun == noun).statements


def _passage(
    rng: random.Random, recall: RecallSubject, pairs: list[tuple[str, str]], split: Split
) -> str:
    return f"{rng.choice(recall.openings.of(split))} {_sentences(rng, recall, pairs, split)}"


def _sentences(
    rng: random.Random, recall: RecallSubject, pairs: list[tuple[str, str]], split: Split
) -> str:
    pattern = rng.choice(recall.statements.of(split))
    return " ".join(pattern.format(e=key, v=value) for key, value in pairs)


def _choose(rng: random.Random, subject: str, text: str, right: str, wrong: list[str]) -> Question:
    options = [right, *rng.sample(wrong, 3)]
    rng.shuffle(options)
    return Question(subject, text, (*options,), options.index(right))  # type: ignore[arg-type]


def _judge(document: Document, question: Question) -> None:
    text, *options, ask = question.prompt().rsplit("\n", len(LETTERS) + 1)
    document.say(("\n\n" if document.text else "") + text)
    for index, option in enumerate(options):
        document.say(f"\n{option}")
        document.answer("yes" if index == question.answer else "no")
    document.say(f"\n{ask}")
    document.answer(question.letter)


def _restate(document: Document, pattern: str, key: str, value: str) -> None:
    """Append a sentence in which whatever comes second, key or value, is the answer."""
    first, second = sorted(("{e}", "{v}"), key=pattern.index)
    names = {"{e}": key, "{v}": value}
    head, tail = pattern.replace(first, names[first]).split(f" {second}")
    document.say(f" {head}")
    document.answer(names[second])
    document.say(tail)


def _ask_each(
    document: Document, rng: random.Random, recall: RecallSubject, pairs: list[tuple[str, str]]
) -> None:
    for key, value in pairs:
        asked = rng.choice(recall.questions.training).format(e=key)
        document.say(f"\nQuestion: {asked}\nReply:")
        document.answer(value)


def _echo_question(rng: random.Random, words: tuple[str, ...]) -> Question:
    right, *wrong = rng.sample(words, 4)
    return _choose(rng, "practice", f"Find the option {right}.", right, wrong)


def _balance(rng: random.Random, questions: list[Question]) -> tuple[Question, ...]:
    """Move the right answers so that each letter is right equally often, give or take one."""
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
    """Yield names that look like names and are no English words, none of them twice."""
    onsets, vowels, codas = (
        [
            "b",
            "d",
            "f",
            "g",
            "k",
            "l",
            "m",
            "n",
            "p",
            "r",
            "s",
            "t",
            "v",
            "z",
            "br",
            "dr",
            "kr",
            "tr",
        ],
        "aeiou",
        "klmnrsx",
    )
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
