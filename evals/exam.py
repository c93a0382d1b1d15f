"""Read multiple-choice exams in the layout of the MMLU benchmark's original files.

::

    DIR/dev/<subject>_dev.csv      solved questions for few-shot prompts
    DIR/test/<subject>_test.csv    questions for the model

Each row has a question, four choices and the letter of the right choice. There is no header.
Fields may span lines. MMLU is described in Hendrycks et al. 2021, "Measuring Massive Multitask
Language Understanding".
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from hybridize.errors import InputError

LETTERS = "ABCD"
FIELDS = 2 + len(LETTERS)

# Names become part of task names and of prompt templates, in which braces would be code.
_SUBJECT_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: the question as in the file.
        choices: the four answers to choose from.
        answer: the index of the right choice.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Subject:
    """The questions of one subject, in the order of the files.

    Attributes:
        name: the name of the files without ``_dev.csv`` and ``_test.csv``.
        dev: questions for few-shot prompts.
        test: questions for the model.
    """

    name: str
    dev: tuple[Question, ...]
    test: tuple[Question, ...]


def list_subjects(directory: Path) -> list[str]:
    """Return the names of the subjects below ``directory``, sorted.

    Raises:
        InputError: the directory has no exam, or a subject has only one of its two files.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; it should contain dev/ and test/")
    for split in ("dev", "test"):
        if not (directory / split).is_dir():
            raise InputError(
                f"{directory}: has no {split}/ directory; an exam in MMLU's layout has "
                "dev/SUBJECT_dev.csv and test/SUBJECT_test.csv"
            )
    subjects = {split: _subjects_of(directory, split) for split in ("dev", "test")}
    for name in sorted(subjects["dev"] ^ subjects["test"]):
        here, missing = ("dev", "test") if name in subjects["dev"] else ("test", "dev")
        raise InputError(
            f"{_file_of(directory, missing, name)}: missing, although there is "
            f"{_file_of(directory, here, name)}; each subject needs both"
        )
    if not subjects["test"]:
        raise InputError(f"{directory}: no subjects; test/ has no file SUBJECT_test.csv")
    return sorted(subjects["test"])


def read_subject(directory: Path, name: str) -> Subject:
    """Read both files of a subject; see `read_questions` for the errors."""
    dev, test = (read_questions(_file_of(directory, split, name)) for split in ("dev", "test"))
    return Subject(name, dev, test)


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read one file of questions.

    Raises:
        InputError: the file cannot be read, is not UTF-8, is not CSV, is empty, or has a row that
            is not a question, four choices and a letter from A to D. The message names the line.
    """
    questions = []
    first_line = 1
    try:
        # utf-8-sig, because spreadsheets put a byte order mark in front of their CSV files.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                if row:  # skip blank lines
                    questions.append(_parse(row, f"{path}, line {first_line}"))
                first_line = rows.line_num + 1
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); re-encode it") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {first_line}: not valid CSV: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not questions:
        raise InputError(f"{path}: empty; it should have one question per row")
    return tuple(questions)


def _parse(row: list[str], where: str) -> Question:
    if len(row) != FIELDS:
        raise InputError(
            f"{where}: {len(row)} fields instead of {FIELDS} (question, four choices, letter)"
        )
    text, *choices, letter = row
    if letter not in LETTERS or len(letter) != 1:
        raise InputError(
            f"{where}: the last field, the right answer, is {letter[:20]!r} instead of A, B, C or D"
        )
    return Question(text, tuple(choices), LETTERS.index(letter))


def _file_of(directory: Path, split: str, subject: str) -> Path:
    return directory / split / f"{subject}_{split}.csv"


def _subjects_of(directory: Path, split: str) -> set[str]:
    ending = f"_{split}.csv"
    names = set()
    for path in sorted((directory / split).iterdir()):
        # Archives made on a Mac contain a ._ file for each file.
        if not path.name.endswith(ending) or path.name.startswith("."):
            continue
        name = path.name.removesuffix(ending)
        if not _SUBJECT_NAME.fullmatch(name):
            raise InputError(
                f"{path}: a subject's name may have letters, digits, '_' and '-'; rename the file"
            )
        names.add(name)
    return names
