"""Multiple-choice questions, and prompts in the format of lm-eval's task ``mmlu``."""

from dataclasses import dataclass

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; ``answer`` is an index into the four ``options``."""

    subject: str
    text: str
    options: tuple[str, str, str, str]
    answer: int

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.answer]

    def prompt(self) -> str:
        """Return the question as MMLU prints it, up to and including ``Answer:``."""
        options = "\n".join(
            f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True)
        )
        return f"{self.text.strip()}\n{options}\nAnswer:"


@dataclass(frozen=True)
class SubjectExam:
    """The questions of one subject: ``dev`` are the shots, ``test`` give the score."""

    dev: tuple[Question, ...]
    test: tuple[Question, ...]


def exam_prompt(subject: str, shots: tuple[Question, ...], question: Question) -> str:
    """Build the few-shot prompt that lm-eval's task ``mmlu`` builds, ending in ``Answer:``."""
    solved = [f"{shot.prompt()} {shot.letter}" for shot in shots]
    return exam_header(subject) + "\n\n".join([*solved, question.prompt()])


def exam_header(subject: str) -> str:
    """Return MMLU's description line for a subject, and the blank line after it."""
    return (
        "The following are multiple choice questions (with answers) about "
        f"{subject.replace('_', ' ')}.\n\n"
    )
