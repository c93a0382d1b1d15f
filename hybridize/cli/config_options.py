"""The options of a command, derived from its config class."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from hybridize.cli.options import common_options
from hybridize.errors import as_flags
from hybridize.option_types import Choice, Flag, OptionType, PerName, Repeated, TextOrFlag
from hybridize.options import Config, option_info

Command = Callable[..., Any]


class TypedText(click.ParamType):
    """The text that a user typed, unchanged: the config class converts and checks it.

    Attributes:
        option_type: the type that the config class converts it with.
    """

    name = "text"

    def __init__(self, option_type: OptionType) -> None:
        self.option_type = option_type

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin with ``incomplete``, if the option takes a name."""
        names = self.option_type.names if isinstance(self.option_type, Choice) else ()
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def config_options(config_class: type[Config]) -> Callable[[Command], Command]:
    """Add an option for each field of a config class; the command gets the config as ``config``.

    The options have the order of the fields; those of `common_options` come last. The command's
    callback has the config class as its attribute ``config_class``.
    """
    every = fields(config_class)  # type: ignore[arg-type]  # subclasses are dataclasses
    flags = _flags(every)

    def decorate(function: Command) -> Command:
        @wraps(function)
        def run(**given: Any) -> Any:
            return function(config=take_config(config_class, given), **given)

        run.config_class = config_class  # type: ignore[attr-defined]
        command: Command = common_options(run, flags)
        for each in reversed(every):
            for option in reversed(_click_options(each, flags)):
                command = option(command)
        return command

    return decorate


def take_config(config_class: type[Config], given: dict[str, Any]) -> Config:
    """Remove the options of a config class from ``given``, and return the config.

    Raises:
        InputError: a value is wrong.
    """
    every = fields(config_class)  # type: ignore[arg-type]
    typed = {each.name: _typed(each, given) for each in every}
    return config_class(**{name: v for name, v in typed.items() if v not in (None, ())})


def _flags(every: Iterable[Field[Any]]) -> dict[str, str]:
    """Return the flag of each keyword; see `as_flags`.

    An item of a mapping has a flag of its own: ``stage_tokens[kl]`` is ``--kl-tokens``.
    """
    flags = {}
    for each in every:
        info, flag = option_info(each), _flag(each.name)
        if isinstance(info.type, PerName):
            for keyword, name in info.type.keywords().items():
                flags[f"{each.name}[{name}]"] = flags[keyword] = _flag(keyword)
            continue
        # A switch that is off by default needs no flag that turns it off.
        has_off = isinstance(info.type, Flag) and each.default is not False
        off = f"/--no-{flag[2:]}" if has_off else ""
        flags[each.name] = max(info.flags, key=len) if info.flags else flag + off
    return flags


def _typed(each: Field[Any], given: dict[str, Any]) -> Any:
    """Remove a field's typed value from ``given`` and return it; None or () if there is none."""
    type_ = option_info(each).type
    if not isinstance(type_, PerName):
        return given.pop(each.name)
    items = {name: given.pop(keyword) for keyword, name in type_.keywords().items()}
    return {name: value for name, value in items.items() if value is not None} or None


def _click_options(each: Field[Any], flags: dict[str, str]) -> list[Callable[[Command], Command]]:
    info = option_info(each)
    if isinstance(info.type, PerName):
        item, help_of = info.type.item, info.type.help
        return [
            _value_option((_flag(keyword),), keyword, item, help=as_flags(help_of(name), flags))
            for keyword, name in info.type.keywords().items()
        ]
    declared, text = info.flags or (flags[each.name],), as_flags(_help(each), flags)
    if isinstance(info.type, Flag):
        return [click.option(*declared, each.name, is_flag=True, default=None, help=text)]
    required = each.default is MISSING
    return [_value_option(declared, each.name, info.type, help=text, required=required)]


def _value_option(
    declared: tuple[str, ...], name: str, type_: OptionType, *, help: str, required: bool = False
) -> Callable[[Command], Command]:
    bare: dict[str, Any] = {}
    if isinstance(type_, TextOrFlag):
        bare = {"is_flag": False, "flag_value": type_.bare}
    return click.option(
        *declared,
        name,
        type=TypedText(type_),
        metavar=type_.metavar,
        multiple=isinstance(type_, Repeated),
        required=required,
        help=help,
        **bare,
    )


def _flag(keyword: str) -> str:
    return f"--{keyword.replace('_', '-')}"


def _help(each: Field[Any]) -> str:
    """Return the help text followed by the default."""
    info = option_info(each)
    shown = info.default_text
    silent = (MISSING, None, False, ())
    if shown is None and not any(each.default is value for value in silent):
        on = each.default is True
        shown = each.name.replace("_", "-") if on else info.type.to_text(each.default)
    return info.help if shown is None else f"{info.help}  [default: {shown}]"
