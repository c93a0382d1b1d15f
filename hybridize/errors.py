"""The errors that a user can see, with their exit codes.

A message is one line. It names the file or the option, says what is wrong, and says what to do. It
names an option by its Python keyword, in backticks: `` `d_state=0`: give … ``. The command line
shows the flag instead (`as_flags`). A traceback appears with ``--debug`` only.
"""

import re
from collections.abc import Mapping


class HybridizeError(Exception):
    """A run failed for a reason that the user can do something about (exit code 1).

    Args:
        message: may quote any text from a file. Line breaks become spaces, other control
            characters become escape sequences, and the middle of a very long message is left out.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__("".join(_shown(character) for character in _shortened(message)))


class InputError(HybridizeError):
    """An input or an option is wrong; nothing was written (exit code 2)."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Recognize the errors of Python, and of torch on GPU and CPU, without importing torch."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


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


_OPTION = re.compile(r"`([a-z][a-z0-9_]*(?:\[\w+\])?)(?:=([^`]*))?`")


def as_flags(message: str, flags: Mapping[str, str]) -> str:
    """Replace the keywords that a message names by what a user types on the command line.

    `` `d_state=0` `` becomes ``--d-state 0``, `` `force` `` becomes ``--force``, and
    `` `ssm_bias=False` `` becomes ``--no-ssm-bias``.

    Args:
        message: names options by their keyword, in backticks, with or without a value.
        flags: each keyword's flag as click declares it, such as ``--d-state`` or
            ``--ssm-bias/--no-ssm-bias``. Other names in backticks stay as they are.
    """

    def typed(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in flags:
            return found.group()
        on, _, off = flags[name].partition("/")
        match value:
            case None | "True":
                return on
            case "False":
                return off or found.group()
            case "":
                return f"{on} ''"
        return f"{on} {value}"

    return _OPTION.sub(typed, message)
