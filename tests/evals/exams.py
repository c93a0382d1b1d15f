"""Write small exams of random words in MMLU's layout."""

import csv
import random
from collections.abc import Iterable
from pathlib import Path

WORDS = [
    *("river", "stone", "copper", "lantern", "orchid", "seven", "harbour", "violet", "quartz"),
    *("meadow", "tiger", "engine", "feather", "garden", "silver", "winter", "arrow", "candle"),
    *("planet", "ocean", "marble", "pepper", "saddle", "window"),
]

# Two subjects of one category of MMLU, and one of each other category.
KNOWN = ("anatomy", "astronomy", "virology", "sociology", "philosophy")
CUSTOM = ("geography_recall", "tools")

CONTEXT = 256  # some prompts of the exams are longer, most are not


def write_questions(path: Path, rows: Iterable[Iterable[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_exam(directory: Path, subjects: Iterable[str], questions: int = 6) -> Path:
    """Write an exam; the number of questions differs by subject."""
    for index, subject in enumerate(subjects):
        rng = random.Random(subject)
        for split, count in (("dev", 6), ("test", questions + 2 * index)):
            rows = [_row(rng) for _ in range(count)]
            write_questions(directory / split / f"{subject}_{split}.csv", rows)
    return directory


def _row(rng: random.Random) -> list[str]:
    text = " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))
    # As in MMLU: quotes, commas, line breaks, spaces at the ends.
    text = rng.choice([f" {text}?", f'"{text}", they said.\n{text}', text + "  ", text])
    return [text, *rng.choices(WORDS, k=4), rng.choice("ABCD")]
