"""Arguments and options that are not in a config class: MODEL, ``--output``, ``--json`` and others.

All other options come from the config class of a command; see `hybridize.cli.config_options`.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from hybridize.console import console
from hybridize.errors import HybridizeError, as_flags
from hybridize.interrupts import Stopped

Command = TypeVar("Command", bound=Callable[..., Any])

model_argument = click.argument("model")
models_argument = click.argument("models", metavar="MODEL...", nargs=-1, required=True)


def output_option(help: str, *, file: bool = False) -> Callable[[Command], Command]:
    """Add the option ``-o`` or ``--output``, which the command gets as ``output: Path``.

    Args:
        help: the help text.
        file: whether the output is a file; it is a directory otherwise.
    """
    kind = click.Path(path_type=Path, file_okay=file, dir_okay=not file)
    return click.option(
        "-o", "--output", type=kind, metavar="FILE" if file else "DIR", required=True, help=help
    )


def _debug(context: click.Context, _: click.Parameter, on: bool) -> None:
    # Not reset when the command ends, because the failure is reported after that.
    console.debug = console.debug or on


def _json(context: click.Context, _: click.Parameter, on: bool) -> None:
    if on:
        context.with_resource(console.only_json())


def _quiet(context: click.Context, _: click.Parameter, on: bool) -> None:
    if on:
        context.with_resource(console.silence())


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,  # so that it also applies to errors in other options
    callback=_debug,
    help="Show the traceback of a failure.",
)

_json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_json,
    help="Print the result as one JSON object to stdout.",
)

_quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_quiet,
    help="Print no messages and no progress.",
)


def common_options(command: Command, item_flags: Mapping[str, str] | None = None) -> Command:
    """Add ``--json``, ``--quiet`` and ``--debug``, which every command has.

    They set ``hybridize.console.console`` while the command runs; the command does not get them.
    Errors of the command name options by their flags; see `as_flags`.

    Args:
        command: the command.
        item_flags: flags of keywords that are not the name of a click option, such as
            ``stage_tokens[kl]``.
    """

    @wraps(command)
    def run(*arguments: Any, **given: Any) -> Any:
        try:
            return command(*arguments, **given)
        except (HybridizeError, Stopped) as error:
            flags = flags_of(click.get_current_context().command.params) | dict(item_flags or {})
            if isinstance(error, HybridizeError):
                error.args = (as_flags(str(error), flags),)
            error.__notes__ = [as_flags(note, flags) for note in getattr(error, "__notes__", ())]
            raise

    return _json_option(_quiet_option(debug_option(cast(Command, run))))


def flags_of(parameters: list[click.Parameter]) -> dict[str, str]:
    """Return the flag of each option, by the option's keyword."""
    return {
        option.name: "/".join(
            max(names, key=len) for names in (option.opts, option.secondary_opts) if names
        )
        for option in parameters
        if isinstance(option, click.Option) and option.name
    }
