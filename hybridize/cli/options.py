"""The options that commands share, so that each is spelt, explained and checked in one place.

Values stay plain: what a device or a dtype means is for the functions behind the commands to say.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from hybridize.console import console
from hybridize.errors import HybridizeError, as_flags

Command = TypeVar("Command", bound=Callable[..., Any])

LARGEST_SEED = 2**32 - 1  # numpy takes no larger one
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")

model_argument = click.argument("model")
models_argument = click.argument("models", metavar="MODEL...", nargs=-1, required=True)


def output_option(
    help: str, *, file: bool = False, required: bool = True
) -> Callable[[Command], Command]:
    """Add ``-o/--output``, passed on as ``output: Path | None``.

    Args:
        help: what is written there.
        file: whether that is a file rather than a directory.
        required: whether the command needs it; None is passed where it is left out.
    """
    kind = click.Path(path_type=Path, file_okay=file, dir_okay=not file)
    return click.option(
        "-o", "--output", type=kind, metavar="FILE" if file else "DIR", required=required, help=help
    )


force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be done, with sizes, and write nothing."
)

device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where to compute; auto is CUDA where there is a GPU.",
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0, LARGEST_SEED),
    default=0,
    show_default=True,
    help="Random seed.",
)


def dtype_option(help: str) -> Callable[[Command], Command]:
    """Add ``--dtype``, passed on as ``dtype: str``; ``help`` says of what, and what auto means."""
    return click.option(
        "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help=help
    )


def _debug(context: click.Context, _: click.Parameter, on: bool) -> None:
    # Not undone when the command ends: whoever reports its failure still has to know.
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
    is_eager=True,  # seen before another option is found to be wrong
    callback=_debug,
    help="Show the traceback of a failure.",
)

_json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_json,
    help="Print one JSON object to stdout, and nothing else there.",
)

_quiet_option = click.option(
    "--quiet", is_flag=True, expose_value=False, callback=_quiet, help="No messages, no progress."
)


def common_options(command: Command) -> Command:
    """Add ``--json``, ``--quiet`` and ``--debug``, which every command has.

    They set ``hybridize.console.console`` while the command runs; the command does not get them.
    Errors of the command name options by their flags.
    """
    return _json_option(_quiet_option(debug_option(_naming_flags(command))))


def _naming_flags(command: Command) -> Command:
    """Replace the keywords in a command's errors by flags; see `as_flags`."""

    @wraps(command)
    def run(*arguments: Any, **given: Any) -> Any:
        try:
            return command(*arguments, **given)
        except HybridizeError as error:
            options = click.get_current_context().command.params
            error.args = (as_flags(str(error), flags_of(options)),)
            raise

    return cast(Command, run)


def flags_of(parameters: list[click.Parameter]) -> dict[str, str]:
    """Return the flag of each option, by the option's keyword."""
    return {
        option.name: "/".join(
            max(names, key=len) for names in (option.opts, option.secondary_opts) if names
        )
        for option in parameters
        if isinstance(option, click.Option) and option.name
    }
