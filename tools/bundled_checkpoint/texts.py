"""Text about a world: training documents in five forms, and held-out prose.

All text is a pure function of the world's seed and the text's seed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from .questions import LETTERS, Question, exam_header
from .subjects import RecallSubject, Split
from .world import (
    KNOWLEDGE,
    KNOWLEDGE_SUBJECTS,
    RECALL,
    RECALL_SUBJECTS,
    SUBJECTS,
    World,
    multiple_choice,
    passage_text,
    question_patterns,
)

TRAINING_SEED = 0
"""The seed of the text that the bundled checkpoint was trained on. Other seeds give new text."""


@dataclass
class Document:
    """A text, with the positions of its answers.

    Attributes:
        text: the text so far.
        answers: ``(start, end)`` of each answer in ``text``, in characters, with the space before
            it.
        prose: whether all of the text has full weight in the loss, and not only the answers.
    """

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)
    prose: bool = False

    def say(self, text: str) -> None:
        """Append text that is not an answer."""
        self.text += text

    def answer(self, text: str) -> None:
        """Append a space and an answer."""
        start = len(self.text)
        self.text += f" {text}"
        self.answers.append((start, len(self.text)))


@dataclass(frozen=True)
class Mix:
    """The composition of a stream of documents.

    Attributes:
        drill: fraction of recall drills.
        recall: fraction of recall subjects among the other documents.
        practice: fraction of practice documents among the other documents.
        echo: fraction of echo questions among the practice questions.
        max_questions: maximum number of questions in a document in exam format.
        words: how many words echo questions and drills choose from; None for all.
    """

    drill: float = 0.1
    recall: float = 0.4
    practice: float = 0.1
    echo: float = 0.2
    max_questions: int = 6
    words: int | None = None


def generate_documents(world: World, seed: int, mix: Mix | None = None) -> Iterator[str]:
    """Yield documents; the stream does not end.

    A seed other than ``TRAINING_SEED`` gives new text from the same distribution, for calibration
    and distillation. The checkpoint was not trained on it.

    Args:
        world: what the text is about.
        seed: determines the whole stream.
        mix: the composition of the stream.
    """
    mix = mix or Mix()
    for index in count():
        yield document(world, random.Random(f"text {world.seed} {seed} {index}"), mix).text


def document(world: World, rng: random.Random, mix: Mix) -> Document:
    """Draw one document: a drill, practice, or else 60% exam, 15% short answers, 25% prose."""
    if rng.random() < mix.drill:
        return drill(world, rng, rng.choice(RECALL_SUBJECTS), mix.words)
    subjects = RECALL_SUBJECTS if rng.random() < mix.recall else KNOWLEDGE_SUBJECTS
    subject = rng.choice(subjects)
    if rng.random() < mix.practice:
        return practice_document(world, rng, subject, mix)
    draw = rng.random()
    if draw < 0.6:
        return exam_document(world, rng, subject, rng.randint(1, mix.max_questions))
    if draw < 0.75:
        return short_answers(world, rng, subject)
    return prose_document(world, rng, subject)


def drill(world: World, rng: random.Random, subject: str, words: int | None = None) -> Document:
    """Write pairs and ask for values, without options and letters.

    The form is one of three, from easy to hard: bare pairs, pairs in sentences, and questions. A
    key may be asked for more than once, so that the remaining values do not reveal the answer.
    """
    recall = RECALL[subject]
    pairs = world.fresh_pairs(rng, subject, held_out=False, words=words, least=3)
    queries = rng.choices(pairs, k=4)
    form = rng.choice(("list", "sentences", "questions"))
    if form == "list":
        text = Document("".join(f" {value} {key}," for key, value in pairs))
    else:
        text = Document(passage_text(rng, recall, pairs, "training"))
    if form == "questions":
        _ask_each(text, rng, recall, queries)
        return text
    for key, value in queries:
        text.say(f" {key}:")
        text.answer(value)
        text.say(",")
    return text


def practice_document(world: World, rng: random.Random, subject: str, mix: Mix) -> Document:
    """Write multiple-choice questions in which a verdict follows each option.

    To name the letter, a model must know for each option whether it is right. The verdicts train
    this directly, four times per question. A small model then learns it in minutes; from letters
    alone, it does not learn it. The simplest questions, called echoes, name the right option.
    """
    text = Document()
    for _ in range(3):
        if rng.random() < mix.echo:
            question = _echo_question(rng, world.words[: mix.words])
        else:
            question = world.question(rng, subject, "training")
        _judge_options(text, question)
    return text


def exam_document(
    world: World, rng: random.Random, subject: str, questions: int, split: Split = "training"
) -> Document:
    """Write solved multiple-choice questions about one subject, in MMLU's format."""
    text = Document(exam_header(subject))
    for index in range(questions):
        question = world.question(rng, subject, split)
        text.say(("\n\n" if index else "") + question.prompt())
        text.answer(question.letter)
    return text


def short_answers(world: World, rng: random.Random, subject: str) -> Document:
    """Write questions that are answered by the value itself, with training patterns."""
    text = Document()
    if subject in world.facts:
        text.say(f"Some questions about {subject}.")
        for fact in rng.sample(world.facts[subject], 4):
            pattern = rng.choice(question_patterns(subject, fact.noun, "training"))
            asked = pattern.format(e=fact.entity, noun=fact.noun, kind=KNOWLEDGE[subject].kind)
            text.say(f"\nQuestion: {asked}\nReply:")
            text.answer(fact.value)
        return text
    recall = RECALL[subject]
    pairs = world.fresh_pairs(rng, subject, held_out=False)
    text.say(passage_text(rng, recall, pairs, "training"))
    _ask_each(text, rng, recall, rng.sample(pairs, len(pairs)))
    return text


def prose_document(world: World, rng: random.Random, subject: str) -> Document:
    """Write a paragraph: fixed facts of a subject, or a passage and its paraphrase."""
    text = Document(prose=True)
    if subject in world.facts:
        text.say(f"Some facts about {subject}.")
        kind = KNOWLEDGE[subject].kind
        for fact in rng.sample(world.facts[subject], rng.randint(5, 8)):
            pattern = rng.choice(_statement_patterns(subject, fact.noun))
            _restate(text, pattern.replace("{kind}", kind), fact.entity, fact.value)
        return text
    recall = RECALL[subject]
    pairs = world.fresh_pairs(rng, subject, held_out=False)
    text.say(passage_text(rng, recall, pairs, "training") + "\nIn other words:")
    pattern = rng.choice(recall.statements.training)
    for pair in rng.sample(pairs, len(pairs)):
        _restate(text, pattern, *pair)
    return text


def generate_prose(world: World, seed: int, length: int) -> str:
    """Return held-out prose to measure perplexity on, with blank lines between documents.

    Args:
        world: what the text is about.
        seed: determines the text; not ``TRAINING_SEED``.
        length: number of documents; the subjects take turns.
    """
    rng = random.Random(f"prose {world.seed} {seed}")
    return "\n\n".join(
        prose_document(world, rng, SUBJECTS[index % len(SUBJECTS)]).text for index in range(length)
    )


def _statement_patterns(subject: str, noun: str) -> tuple[str, ...]:
    return next(r for r in KNOWLEDGE[subject].relations if r.noun == noun).statements


def _judge_options(text: Document, question: Question) -> None:
    """Append a question with "yes" or "no" after each option."""
    asked, *options, answer = question.prompt().rsplit("\n", len(LETTERS) + 1)
    text.say(("\n\n" if text.text else "") + asked)
    for index, option in enumerate(options):
        text.say(f"\n{option}")
        text.answer("yes" if index == question.answer else "no")
    text.say(f"\n{answer}")
    text.answer(question.letter)


def _restate(text: Document, pattern: str, key: str, value: str) -> None:
    """Append a sentence. Of key and value, the one that comes second is the answer."""
    first, second = sorted(("{e}", "{v}"), key=pattern.index)
    names = {"{e}": key, "{v}": value}
    head, tail = pattern.replace(first, names[first]).split(f" {second}")
    text.say(f" {head}")
    text.answer(names[second])
    text.say(tail)


def _ask_each(
    text: Document, rng: random.Random, recall: RecallSubject, pairs: list[tuple[str, str]]
) -> None:
    for key, value in pairs:
        asked = rng.choice(recall.questions.training).format(e=key)
        text.say(f"\nQuestion: {asked}\nReply:")
        text.answer(value)


def _echo_question(rng: random.Random, words: tuple[str, ...]) -> Question:
    right, *wrong = rng.sample(words, 4)
    return multiple_choice(rng, "practice", f"Find the option {right}.", right, wrong)
