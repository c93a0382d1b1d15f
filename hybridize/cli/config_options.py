"""The options of a command, derived from its config class."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from hybridize.cli.options import common_options
from hybridize.errors import HybridizeError, as_flags
from hybridize.option_types import Choice, Flag, OptionType, Repeated
from hybridize.options import Config, option_info

Command = Callable[..., Any]


class _AsTyped(click.ParamType):
    """Passes on what was typed: the config class converts and checks it."""

    name = "text"

    def __init__(self, type_: OptionType) -> None:
        self._names = type_.names if isinstance(type_, Choice) else ()

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the names that an option can take."""
        return [CompletionItem(name) for name in self._names if name.startswith(incomplete)]


def config_options(config_class: type[Config]) -> Callable[[Command], Command]:
    """Add an option for each field of a config class, and pass on ``config``.

    Options stand in the order of the fields, followed by those of `common_options`. An error names
    options by their flags.
    """
    every = fields(config_class)  # type: ignore[arg-type]  # subclasses are dataclasses
    names = [each.name for each in every]

    def decorate(function: Command) -> Command:
        @wraps(function)
        def run(**given: Any) -> Any:
            typed = {name: given.pop(name) for name in names}
            try:
                config = config_class(**{k: v for k, v in typed.items() if v not in (None, ())})
                return function(config=config, **given)
            except HybridizeError as error:
                error.args = (as_flags(str(error), {*names, *given}),)
                raise

        command = common_options(run)
        for each in reversed(every):
            command = _click_option(each, names)(command)
        return command

    return decorate


def _click_option(each: Field[Any], names: list[str]) -> Callable[[Command], Command]:
    info, text = option_info(each), as_flags(_help(each), names)
    flag = f"--{each.name.replace('_', '-')}"
    if isinstance(info.type, Flag):
        off = f"{flag}/--no-{flag[2:]}" if each.default is True else flag
        return click.option(
            *(info.flags or (off,)), each.name, is_flag=True, default=None, help=text
        )
    return click.option(
        *(info.flags or (flag,)),
        each.name,
        type=_AsTyped(info.type),
        metavar=info.type.metavar,
        multiple=isinstance(info.type, Repeated),
        required=each.default is MISSING,
        help=text,
    )


def _help(each: Field[Any]) -> str:
    """Return the help text, with the default behind it."""
    info = option_info(each)
    shown = info.default_text
    silent = (MISSING, None, False, ())
    if shown is None and not any(each.default is value for value in silent):
        on = each.default is True
        shown = each.name.replace("_", "-") if on else info.type.to_text(each.default)
    return info.help if shown is None else f"{info.help}  [default: {shown}]"
