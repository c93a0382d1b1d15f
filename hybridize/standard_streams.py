"""Standard streams that are closed, or cannot show every character.

A command must not fail at its end because a terminal lacks a character, or because there is no
terminal.
"""

import codecs
import errno
import io
import os
import sys
from typing import TextIO

from typing_extensions import override

_PLAIN = {
    "×": "x", "±": "+-", "−": "-", "–": "-", "─": "-", "│": "|", "→": "->", "…": "...", "·": ".",
    "█": "#", "▏": "|", "▎": "|", "▍": "|", "▌": "|", "▋": "|", "▊": "|", "▉": "|", "ᵀ": "T",
    "¹": "1", "²": "2", "³": "3", "Δ": "d", "µ": "u",
}  # fmt: skip
"""What stands for our own characters where the encoding lacks them."""

_HANDLER = "hybridize.plain"


def prepare_streams() -> None:
    """Make output work with closed streams and with encodings other than UTF-8.

    A closed stream becomes the null device. Otherwise the next file that is opened would get its
    number, and everything that is printed would be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest free number, which is this one
        if getattr(sys, name) is None:
            null = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, null)
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Messages(
            sys.stderr.buffer, sys.stderr.encoding, sys.stderr.errors, line_buffering=True
        )


class _Messages(io.TextIOWrapper):
    """Messages that get lost when nobody can read them any more.

    A run of many hours must not end because its terminal or the disk of its log file has gone.
    """

    @override
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    @override
    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    @override
    def close(self) -> None:
        self.flush()  # the buffer belongs to the original stream

    def _lose(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the disk may get space again
            _redirect(self)


def discard_unwritten() -> None:
    """Prevent a second error when the interpreter flushes stdout at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _redirect(sys.stdout)


def _redirect(stream: TextIO) -> None:
    """Send the rest of a stream to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace one character that an encoding lacks; an error handler of the codecs."""
    if not isinstance(error, UnicodeEncodeError):  # a program that captures stderr reads it back
        return codecs.backslashreplace_errors(error)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return bytes([ord(character) & 0xFF]), error.start + 1
    return _PLAIN.get(character, "?"), error.start + 1
