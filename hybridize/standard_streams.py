"""Standard streams that are closed, or cannot show every character.

A command must not fail at its end because a terminal lacks a character, or because there is no
terminal.
"""

import codecs
import os
import sys

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


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace one character that an encoding lacks; an error handler of the codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return bytes([ord(character) & 0xFF]), error.start + 1
    return _PLAIN.get(character, "?"), error.start + 1
