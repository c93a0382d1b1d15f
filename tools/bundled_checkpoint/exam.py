"""The exam as files, in the layout of MMLU's original release."""

import csv
from pathlib import Path

from .questions import LETTERS, Question, SubjectExam
from .world import World


def write_exam(world: World, directory: Path) -> None:
    """Write ``dev/SUBJECT_dev.csv`` and ``test/SUBJECT_test.csv`` for each subject of a world.

    The columns are the question, the four options and the letter of the right one; no header.
    """
    for subject, exam in world.exam().items():
        for part, questions in (("dev", exam.dev), ("test", exam.test)):
            path = directory / part / f"{subject}_{part}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(
                    [question.text, *question.options, question.letter] for question in questions
                )


def read_exam(directory: Path) -> dict[str, SubjectExam]:
    """Read an exam that ``write_exam`` wrote. The subjects are in alphabetical order."""
    return {
        (subject := path.stem.removesuffix("_test")): SubjectExam(
            _read(directory / "dev" / f"{subject}_dev.csv", subject), _read(path, subject)
        )
        for path in sorted((directory / "test").glob("*_test.csv"))
    }


def _read(path: Path, subject: str) -> tuple[Question, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Question(subject, text, (a, b, c, d), LETTERS.index(letter))
            for text, a, b, c, d, letter in csv.reader(file)
        )
