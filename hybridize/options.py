"""Options of commands as data: one frozen config class per command, each option written once.

A field made with `option` has a type, which converts and checks values, a default and a help text.
The class determines

- the keywords of the Python function (`takes_options`),
- the options of the command line (`hybridize.cli.config_options`),
- the record in a checkpoint's provenance (`Config.record`).

An error names an option by its keyword, in backticks: `` `d_state=0` ``, or, for an item of a
mapping (`hybridize.option_types.PerName`), `` `stage_tokens[kl]=0` ``. The command line shows the
same message with the flag, ``--d-state 0`` or ``--kl-tokens 0``; see `hybridize.errors.as_flags`.

A config module imports neither torch nor transformers, so that help and errors are quick.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar

from hybridize.errors import InputError
from hybridize.option_types import Choice, Flag, Integer, ItemError, Location, OptionType

Result = TypeVar("Result")


@dataclass(frozen=True)
class OptionInfo:
    """Everything about an option except its name and default.

    Attributes:
        type: converts and checks values.
        help: one or two plain sentences for ``--help``.
        default_text: what ``--help`` shows as the default instead of the value.
        recorded: whether the value is recorded in the provenance of a checkpoint; False for options
            that do not influence the result, such as ``force``.
        flags: names on the command line, if they differ from the keyword, such as
            ``("-o", "--output")``.
    """

    type: OptionType
    help: str
    default_text: str | None = None
    recorded: bool = True
    flags: tuple[str, ...] = ()


def option(
    type: OptionType,
    default: Any = MISSING,
    *,
    help: str,
    default_text: str | None = None,
    recorded: bool = True,
    flags: tuple[str, ...] = (),
) -> Any:
    """Return the dataclass field of an option; without a default, the option is required.

    See `OptionInfo` for the arguments.
    """
    info = OptionInfo(type, help, default_text, recorded, flags)
    return field(default=default, metadata={"option": info})


class Config:
    """The base of all config classes, which are frozen dataclasses with keyword-only fields.

    Every value is converted and checked by its option's type; ``None`` means "not given" where it
    is the default. Subclasses check options against each other in `check_options`.

    Raises:
        InputError: a value is wrong.
    """

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value, info = getattr(self, each.name), option_info(each)
            if value is None and each.default is None:
                continue
            try:
                self._set(each.name, info.type.convert(value))
            except ItemError as error:
                item = f"`{each.name}[{error.name}]={error.value}`"
                raise InputError(f"{item}: {error}") from None
            except ValueError as error:
                shown = str(value).replace("`", "'")  # a backtick would end the name
                raise InputError(f"`{each.name}={shown}`: {error}") from None
        self.check_options()

    def check_options(self) -> None:
        """Check the options against each other.

        Raises:
            InputError: options contradict each other.
        """

    def record(self) -> dict[str, Any]:
        """Return the options that influence the result, as JSON values, for the provenance.

        Of a path, only the last part is recorded: a record must not name this machine's folders.
        """
        infos = {each.name: option_info(each) for each in fields(self)}  # type: ignore[arg-type]
        return {
            name: info.type.to_json(getattr(self, name))
            for name, info in infos.items()
            if info.recorded
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def option_info(each: dataclasses.Field[Any]) -> OptionInfo:
    """Return the arguments that `option` was called with for this field."""
    info: OptionInfo = each.metadata["option"]
    return info


def takes_options(
    config_class: type[Config],
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let a function with a parameter ``config`` also take the config's fields as keywords.

    ``run(model, config=ConvertConfig(attention="25%"))`` and ``run(model, attention="25%")`` are
    then the same call. The signature lists all keywords and the docstring explains them. The
    function's attribute ``config_class`` is the config class.

    Raises:
        TypeError: (from the function) a keyword is unknown, or both a config and keywords were
            given.
    """
    options = fields(config_class)  # type: ignore[arg-type]  # subclasses are dataclasses
    names = {each.name for each in options}

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        own = [each for name, each in inspect.signature(function).parameters.items()
               if name != "config"]  # fmt: skip
        known = names | {each.name for each in own}

        @wraps(function)
        def run(*args: Any, config: Any = None, **keywords: Any) -> Result:
            unknown = sorted(keywords.keys() - known)
            if unknown:
                raise TypeError(f"{function.__name__}() has no option {unknown[0]!r}")
            given = {name: keywords.pop(name) for name in names & keywords.keys()}
            if config is not None and given:
                raise TypeError(f"{function.__name__}() takes a config or keywords, not both")
            return function(*args, config=config or config_class(**given), **keywords)

        parameters = inspect.signature(config_class).parameters.values()
        run.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
        run.config_class = config_class  # type: ignore[attr-defined]
        listed = "\n".join(f"    {each.name}: {option_info(each).help}" for each in options)
        run.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{listed}\n"
        return run

    return decorate


# Options that several commands have.


def device_option() -> Any:
    """Return ``device: str``."""
    return option(
        Choice("auto", "cpu", "cuda"),
        "auto",
        recorded=False,
        help="Device to compute on; auto is CUDA if there is a GPU.",
    )


def dtype_option(help: str) -> Any:
    """Return ``dtype: str``; ``help`` says what has this dtype and what auto means."""
    return option(Choice("auto", "float32", "bfloat16", "float16"), "auto", help=help)


def seed_option() -> Any:
    """Return ``seed: int``."""
    return option(Integer(0, 2**32 - 1), 0, recorded=False, help="Random seed.")


def force_option() -> Any:
    """Return ``force: bool``."""
    return option(Flag(), False, recorded=False, help="Replace the output if it exists.")


def dry_run_option() -> Any:
    """Return ``dry_run: bool``."""
    return option(
        Flag(),
        False,
        recorded=False,
        help="Show what the command would do, with sizes, and write nothing.",
    )


def output_file_option(help: str) -> Any:
    """Return ``output: str | None``, typed as ``-o`` or ``--output``."""
    return option(Location("FILE"), None, recorded=False, flags=("-o", "--output"), help=help)


def kv_cache_dtype_option() -> Any:
    """Return ``kv_cache_dtype: str``; see `hybridize.modeling.cache.format.CacheFormat`."""
    return option(
        Choice("auto", "fp8"),
        "auto",
        help="Dtype of the stored keys and values; auto is the dtype of the computation.",
    )


def ssm_cache_dtype_option() -> Any:
    """Return ``ssm_cache_dtype: str``; see `hybridize.modeling.cache.format.CacheFormat`."""
    return option(
        Choice("auto", "bfloat16", "fp8"),
        "auto",
        help="Dtype of the stored SSM states; auto is float32.",
    )
