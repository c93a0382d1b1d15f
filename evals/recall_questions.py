"""Questions whose answers stand in the text before them, at growing lengths.

Perplexity hides what losing attention costs: a recurrent state has room for the language, not for
every pair that a long text states (Arora et al. 2023, "Zoology", arXiv 2312.04927). Two kinds:

- ``associative``: N pairs of a thing and its owner, then one thing again. What stands for N is how
  much must be held at once.
- ``needle``: one such pair somewhere in N words of text about something else. What stands for N is
  how far back it lies.

The other choices are people whom the text names as well, so a model that only remembers who
occurred is right one time in four.
"""

import random
import re
from dataclasses import dataclass

CHOICES = 4
QUESTIONS = 64
DEFAULT_LENGTHS = {"associative": (4, 16, 64), "needle": (128, 512, 2048)}


def _words(text: str) -> list[str]:
    return text.split(",")


_THINGS = _words(
    "basket,book,bottle,brush,button,candle,clock,coin,compass,feather,globe,hammer,kettle,key,"
    "ladder,lantern,letter,map,mask,mirror,needle,pencil,ring,rope,saw,scarf,spoon,ticket"
)
_KINDS = _words("old,new,red,blue,green,white,black,small,big,first,second,third,last,best")
_PEOPLE = _words(
    "Ben,Clara,David,Frank,Grace,Henry,Hugo,Jack,Karen,Lena,Leo,Maria,Noah,Olive,Oscar,Paula,Ruth,"
    "Simon,Tara,Victor,Wendy"
)
_DOES = _words("sees,knows,calls,likes,helps,finds,hears,follows,thanks,meets")
_WHEN = _words("today,again,now,then,here,there,soon,later")
_NAME = re.compile(r"recall_(associative|needle)_([1-9][0-9]{0,6})")


@dataclass(frozen=True)
class RecallQuestion:
    """One question.

    Attributes:
        text: what to go on from.
        choices: people, one of whom is right.
        answer: which, from 0.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


def parse_name(name: str) -> tuple[str, int] | None:
    """Return kind and length of a task's name like ``recall_needle_512``; None for another."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def questions(kind: str, length: int, count: int = QUESTIONS) -> list[RecallQuestion]:
    """Make the questions of a task; the same ones every time.

    Args:
        kind: ``"associative"`` or ``"needle"``.
        length: pairs to hold, or words to look through.
        count: how many questions.
    """
    rng = random.Random(f"{kind} {length}")
    make = _associative if kind == "associative" else _needle
    return [make(rng, length) for _ in range(count)]


def longest(kind: str) -> int:
    """Return the greatest length that a kind has words for."""
    return len(_THINGS) * (1 + len(_KINDS)) if kind == "associative" else 10**6


def _associative(rng: random.Random, pairs: int) -> RecallQuestion:
    things = list(_THINGS)
    if pairs > len(things):
        things += [f"{kind} {thing}" for kind in _KINDS for thing in _THINGS]
    things = rng.sample(things, pairs)
    # The first few differ, so that there is something to choose from.
    owners = rng.sample(_PEOPLE, min(pairs, CHOICES))
    owners += rng.choices(_PEOPLE, k=pairs - len(owners))
    text = " ".join(f"{_stated(*pair)}." for pair in zip(things, owners, strict=True))
    asked = rng.randrange(pairs)
    return _question(rng, text, things[asked], owners[asked], sorted(set(owners)))


def _needle(rng: random.Random, words: int) -> RecallQuestion:
    thing = rng.choice(_THINGS)
    people = rng.sample(_PEOPLE, CHOICES)
    sentences = [f"{rng.choice(_PEOPLE)} {rng.choice(_DOES)} {name}." for name in people[1:]]
    while sum(len(sentence.split()) for sentence in sentences) < words:
        left, right = rng.sample(_PEOPLE, 2)
        sentences.append(f"{left} {rng.choice(_DOES)} {right} {rng.choice(_WHEN)}.")
    rng.shuffle(sentences)
    sentences.insert(rng.randrange(len(sentences) + 1), f"{_stated(thing, people[0])}.")
    return _question(rng, " ".join(sentences), thing, people[0], people)


def _question(
    rng: random.Random, text: str, thing: str, owner: str, named: list[str]
) -> RecallQuestion:
    others = [name for name in named if name != owner]
    strangers = [name for name in _PEOPLE if name not in named]
    others += strangers[: max(0, CHOICES - 1 - len(others))]  # where the text names too few
    choices = [owner, *rng.sample(others, CHOICES - 1)]
    rng.shuffle(choices)
    ending = _stated(thing, "").rstrip()
    text = f"Read this first. {text}\nIn other words: {ending}"
    return RecallQuestion(text, tuple(choices), choices.index(owner))


def _stated(thing: str, owner: str) -> str:
    return f"The {thing} belongs to {owner}"
