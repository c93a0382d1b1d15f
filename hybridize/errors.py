"""The errors a user can meet, each carrying the exit code it ends with.

A message is one line that names the file or option, says what is wrong, and
says what to do. The command line prints it as it is; only ``--debug`` shows a
traceback.
"""


class HybridizeError(Exception):
    """A run that failed for a reason the user can act on (exit code 1).

    Args:
        message: what a file holds may be quoted in it as it is: line breaks become spaces, other
            characters that a terminal obeys are shown by their escapes, and what is longer than
            anybody reads loses its middle.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__("".join(_shown(character) for character in _shortened(message)))


class InputError(HybridizeError):
    """An input or an option that is wrong; nothing was written (exit code 2)."""

    exit_code = 2


_LONGEST = 800  # characters


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST:
        return message
    half = _LONGEST // 2
    return f"{message[:half]} … {message[-half:]}"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()
