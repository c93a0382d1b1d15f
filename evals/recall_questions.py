"""Generate questions whose answers are facts in the text before them, at several lengths.

Perplexity does not show what a model loses with its attention: a recurrent state can model the
language, but it cannot store every fact of a long text (Arora et al. 2023, "Zoology", arXiv
2312.04927). There are three kinds of questions:

- ``associative``: N pairs of a thing and its owner, then a question about one of the things. N is
  the number of facts that the model must store.
- ``needle``: one such pair at a random position in N words of other text. N is the distance over
  which the model must remember the fact.
- ``needles``: sixteen such pairs, spread evenly over N words of other text, and a question about
  each of them. `eval` reads a text once for all of its questions, so 64 questions need only four
  texts.

The wrong choices are other people from the text. A model that remembers only the names is
right in 25% of the cases.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

CHOICES = 4
QUESTIONS = 64
NEEDLES = 16
DEFAULT_LENGTHS = {
    "associative": (4, 16, 64),
    "needle": (128, 512, 2048),
    "needles": (512, 1024, 2048, 4096),
}


def _words(text: str) -> list[str]:
    return text.split(",")


_THINGS = _words(
    "basket,book,bottle,brush,button,candle,clock,coin,compass,feather,globe,hammer,kettle,key,"
    "ladder,lantern,letter,map,mask,mirror,needle,pencil,ring,rope,saw,scarf,spoon,ticket"
)
_ADJECTIVES = _words("old,new,red,blue,green,white,black,small,big,first,second,third,last,best")
_PEOPLE = _words(
    "Ben,Clara,David,Frank,Grace,Henry,Hugo,Jack,Karen,Lena,Leo,Maria,Noah,Olive,Oscar,Paula,Ruth,"
    "Simon,Tara,Victor,Wendy"
)
_VERBS = _words("sees,knows,calls,likes,helps,finds,hears,follows,thanks,meets")
_ADVERBS = _words("today,again,now,then,here,there,soon,later")
_NAME = re.compile(r"recall_(associative|needles?)_([1-9][0-9]{0,6})")


@dataclass(frozen=True)
class RecallQuestion:
    """One question.

    Attributes:
        text: the text, which ends with the beginning of a sentence.
        choices: names of people; one of them completes the sentence correctly.
        answer: the index of the right choice.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


def parse_name(name: str) -> tuple[str, int] | None:
    """Return the kind and the length in a task's name, such as ``recall_needle_512``.

    Returns None for names of other tasks.
    """
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def questions(kind: str, length: int, count: int = QUESTIONS) -> list[RecallQuestion]:
    """Return the questions of a task, the same ones in every call.

    Args:
        kind: ``"associative"``, ``"needle"`` or ``"needles"``.
        length: number of pairs (``associative``) or of words (the others).
        count: number of questions; of the kind ``needles``, those about one text follow each other.
    """
    rng = random.Random(f"{kind} {length}")
    if kind == "needles":
        texts = [_needles(rng, length) for _ in range(-(-count // NEEDLES))]
        return [question for text in texts for question in text][:count]
    make = _associative if kind == "associative" else _needle
    return [make(rng, length) for _ in range(count)]


def max_length(kind: str) -> int:
    """Return the largest length for which there are enough different words."""
    return len(_THINGS) * (1 + len(_ADJECTIVES)) if kind == "associative" else 10**6


def _associative(rng: random.Random, pairs: int) -> RecallQuestion:
    things = list(_THINGS)
    if pairs > len(things):
        things += [f"{adjective} {thing}" for adjective in _ADJECTIVES for thing in _THINGS]
    things = rng.sample(things, pairs)
    # The first owners are different, so that the text names enough people for the choices.
    owners = rng.sample(_PEOPLE, min(pairs, CHOICES))
    owners += rng.choices(_PEOPLE, k=pairs - len(owners))
    text = " ".join(f"{_fact(*pair)}." for pair in zip(things, owners, strict=True))
    asked = rng.randrange(pairs)
    return _question(rng, text, things[asked], owners[asked], sorted(set(owners)))


def _needle(rng: random.Random, words: int) -> RecallQuestion:
    thing = rng.choice(_THINGS)
    people = rng.sample(_PEOPLE, CHOICES)
    sentences = [f"{rng.choice(_PEOPLE)} {rng.choice(_VERBS)} {name}." for name in people[1:]]
    sentences += _other_text(rng, words - sum(len(sentence.split()) for sentence in sentences))
    rng.shuffle(sentences)
    sentences.insert(rng.randrange(len(sentences) + 1), f"{_fact(thing, people[0])}.")
    return _question(rng, " ".join(sentences), thing, people[0], people)


def _needles(rng: random.Random, words: int) -> list[RecallQuestion]:
    """Return one question about each needle, in random order, all after the same text."""
    things, owners = rng.sample(_THINGS, NEEDLES), rng.sample(_PEOPLE, NEEDLES)
    facts = [f"{_fact(*pair)}." for pair in zip(things, owners, strict=True)]
    sentences = list(_other_text(rng, words - sum(len(fact.split()) for fact in facts)))
    indices = [int((index + rng.random()) / NEEDLES * len(sentences)) for index in range(NEEDLES)]
    for index, fact in reversed(list(zip(indices, facts, strict=True))):
        sentences.insert(index, fact)  # from the end, so that the other indices stay the same
    text = " ".join(sentences)
    questions = [_question(rng, text, *pair, owners) for pair in zip(things, owners, strict=True)]
    return rng.sample(questions, NEEDLES)


def _other_text(rng: random.Random, words: int) -> Iterator[str]:
    """Yield sentences with at least this many words in total."""
    count = 0
    while count < words:
        left, right = rng.sample(_PEOPLE, 2)
        sentence = f"{left} {rng.choice(_VERBS)} {right} {rng.choice(_ADVERBS)}."
        count += len(sentence.split())
        yield sentence


def _question(
    rng: random.Random, text: str, thing: str, owner: str, named: list[str]
) -> RecallQuestion:
    others = [name for name in named if name != owner]
    strangers = [name for name in _PEOPLE if name not in named]
    others += strangers[: max(0, CHOICES - 1 - len(others))]  # if the text names too few people
    choices = [owner, *rng.sample(others, CHOICES - 1)]
    rng.shuffle(choices)
    ending = _fact(thing, "").rstrip()
    text = f"Read this first. {text}\nIn other words: {ending}"
    return RecallQuestion(text, tuple(choices), choices.index(owner))


def _fact(thing: str, owner: str) -> str:
    return f"The {thing} belongs to {owner}"
