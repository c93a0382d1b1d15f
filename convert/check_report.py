"""What the check of a conversion has found, as plain data."""

from dataclasses import dataclass
from pathlib import Path

SOURCE, RESULT, CONVERSION = "source", "result", "conversion"
"""What is compared.

- source: the source in transformers, and in hybridize.
- result: the result in transformers, and in hybridize.
- conversion: the source and the result. Behind each new block, the result continues with the
  source's activations, because new blocks compute something else.
"""


class CannotCheckError(Exception):
    """The check is not possible on this machine, or with this source; the message says why."""


def without_folders(text: str, directory: Path) -> str:
    """Return a text in which a directory has its last name only.

    A report goes into the provenance of the result, which must not name this machine's folders.
    """
    return text.replace(str(directory), directory.name)


@dataclass(frozen=True)
class Comparison:
    """One input on which two models were compared.

    Attributes:
        compared: ``"source"``, ``"result"`` or ``"conversion"``; see above.
        input: the input in words.
        difference: the largest difference of a logit, in float32.
        allowed: the largest difference that rounding explains; see `check_models.Reference`.
    """

    compared: str
    input: str
    difference: float
    allowed: float


@dataclass(frozen=True)
class Unreached:
    """An input on which nothing was compared.

    Attributes:
        input: the input in words.
        reason: why it was left out.
    """

    input: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """The result of the check.

    Attributes:
        comparisons: everything that was compared; all agree within rounding.
        unreached: what was not.
        notes: what a user should know about the result.
        skipped: why nothing was checked; None if it was.
    """

    comparisons: tuple[Comparison, ...] = ()
    unreached: tuple[Unreached, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str | None = None
