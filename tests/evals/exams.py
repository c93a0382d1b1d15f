"""Write small exams in MMLU's layout, about nothing."""

import csv
import random
from collections.abc import Iterable
from pathlib import Path

WORDS = [
    *("river", "stone", "copper", "lantern", "orchid", "seven", "harbour", "violet", "quartz"),
    *("meadow", "tiger", "engine", "feather", "garden", "silver", "winter", "arrow", "candle"),
    *("planet", "ocean", "marble", "pepper", "saddle", "window"),
]

# Two of one category of MMLU, and one of each other.
KNOWN = ("anatomy", "astronomy", "virology", "sociology", "philosophy")
CUSTOM = ("geography_recall", "tools")

CONTEXT = 256  # some prompts of the exams are longer, most are not


def write_questions(path: Path, rows: Iterable[Iterable[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_exam(directory: Path, subjects: Iterable[str], questions: int = 9) -> Path:
    """Write an exam; the number of questions differs by subject."""
    for index, subject in enumerate(subjects):
        chance = random.Random(subject)
        for split, count in (("dev", 6), ("test", questions + 3 * index)):
            rows = [_row(chance) for _ in range(count)]
            write_questions(directory / split / f"{subject}_{split}.csv", rows)
    return directory


def _row(chance: random.Random) -> list[str]:
    text = " ".join(chance.choices(WORDS, k=chance.randint(2, 9)))
    # As in the benchmark: quotes, commas, line breaks, spaces at the ends.
    text = chance.choice([f" {text}?", f'"{text}", they said.\n{text}', text + "  ", text])
    return [text, *chance.choices(WORDS, k=4), chance.choice("ABCD")]
