"""Print the format, the sizes and the location of the checkpoint that a command wrote."""

from pathlib import Path
from typing import Protocol

from hybridize.console import console
from hybridize.units import size_in_words


class WrittenCheckpoint(Protocol):
    """The result of a command that writes a checkpoint."""

    @property
    def output(self) -> Path:
        """The directory."""

    @property
    def dry_run(self) -> bool:
        """Whether nothing was written."""


class ChangedModel(WrittenCheckpoint, Protocol):
    """The result of a command that changes the architecture of a model."""

    @property
    def format(self) -> str:
        """The on-disk format."""

    @property
    def reason(self) -> str:
        """Why this format was chosen."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the result."""

    @property
    def parameters_before(self) -> int:
        """The number of parameters of the source."""

    @property
    def parameters_after(self) -> int:
        """The number of parameters of the result."""

    @property
    def bytes_before(self) -> int:
        """The size of the source's weights."""

    @property
    def bytes_after(self) -> int:
        """The size of the result's weights."""


def size_rows(result: ChangedModel) -> list[tuple[str, str, str]]:
    """Return table rows with the sizes before and after."""
    before, after = result.parameters_before, result.parameters_after
    return [
        ("parameters", f"{before:,}", f"{after:,} ({after / before - 1:+.1%})"),
        ("weights", size_in_words(result.bytes_before), size_in_words(result.bytes_after)),
    ]


def print_format(result: ChangedModel) -> None:
    """Print the on-disk format, why it was chosen, and the notes."""
    console.message(f"format: {result.format}: {result.reason}")
    for note in result.notes:
        console.message(f"note: {note}")


def print_output(result: WrittenCheckpoint, details: str) -> None:
    """Print where the checkpoint is, or that it was not written.

    Args:
        result: the result of the command.
        details: a few words about the written checkpoint.
    """
    if result.dry_run:
        console.message(f"dry run: {result.output} was not written")
    else:
        console.message(f"written: {result.output} ({details})")


def weight_files(count: int) -> str:
    """Return a number of weight files in words."""
    return "1 weight file" if count == 1 else f"{count} weight files"
