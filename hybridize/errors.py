"""The errors a user can meet, each carrying the exit code it ends with.

A message is one line that names the file or option, says what is wrong, and says what to do. It
names an option by its Python keyword, in backticks: ```d_state=0: give …```. The command line
shows the flag instead (`as_flags`); only ``--debug`` shows a traceback.
"""

import re
from collections.abc import Collection


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


_OPTION = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def as_flags(message: str, options: Collection[str]) -> str:
    """Spell the options that a message names as they are typed on the command line.

    ```d_state=0``` becomes ``--d-state 0``, ```force``` becomes ``--force``, and
    ```ssm_bias=False``` becomes ``--no-ssm-bias``.

    Args:
        message: may name options by their keyword, in backticks, with or without a value.
        options: the keywords that are options; other names in backticks stay as they are.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found.group()
        words = name.replace("_", "-")
        if value in ("True", "False"):
            return f"--{words}" if value == "True" else f"--no-{words}"
        return f"--{words}" if value is None else f"--{words} {value}"

    return _OPTION.sub(flag, message)
