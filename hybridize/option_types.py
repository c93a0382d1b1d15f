"""Types of options. A type converts and checks the values of an option.

``convert`` takes a Python value or the text that a user typed, and returns the value that the
program uses. The same code therefore checks both Python calls and the command line.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.units import format_with_unit, parse_with_unit


class OptionType(ABC):
    """The base of all types.

    Attributes:
        metavar: what ``--help`` shows for the value.
    """

    metavar: str = "TEXT"

    @abstractmethod
    def convert(self, value: Any) -> Any:
        """Return the value to use.

        Raises:
            ValueError: the value is wrong; the message says which values are allowed.
        """

    def to_json(self, value: Any) -> Any:
        """Return the value as a JSON value, for the provenance."""
        return list(value) if isinstance(value, tuple) else value

    def to_text(self, value: Any) -> str:
        """Return the value as a user would type it."""
        return str(value)


class Flag(OptionType):
    """A switch: true or false."""

    metavar = ""

    @override
    def convert(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("choose True or False")
        return value


@dataclass(frozen=True)
class Text(OptionType):
    """Any text that is not empty; numbers become text."""

    metavar: str = "TEXT"

    @override
    def convert(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | Path) or not str(value):
            raise ValueError(f"give {self.metavar}")
        return str(value)


@dataclass(frozen=True)
class ParsedText(Text):
    """Text that a function can parse. The option keeps the text.

    Attributes:
        parse: parses the text; the message of its `ValueError` says which texts are allowed.
    """

    parse: Callable[[str], Any] = str

    @override
    def convert(self, value: Any) -> str:
        text = super().convert(value)
        self.parse(text)
        return text


@dataclass(frozen=True)
class TextOrFlag(Text):
    """A text. On the command line, the option may also be given without a value.

    Attributes:
        bare: the value of the option if it is given without one.
    """

    bare: str = ""


class Choice(OptionType):
    """One of several names."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.metavar = "|".join(names)

    @override
    def convert(self, value: Any) -> str:
        if value not in self.names:
            raise ValueError(f"choose one of {', '.join(self.names)}")
        return str(value)


class NameIn(Choice):
    """One of the names in a registry, including those that are registered after the import.

    Args:
        registered: returns the names.
    """

    def __init__(self, registered: Callable[[], Iterable[str]]) -> None:
        self._registered = registered

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names that are registered now."""
        return tuple(self._registered())

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """What ``--help`` shows for the value."""
        return "|".join(self.names)


@dataclass(frozen=True)
class Integer(OptionType):
    """A whole number between two limits, both included."""

    minimum: int | None = None
    maximum: int | None = None
    metavar: str = "N"

    @override
    def convert(self, value: Any) -> int:
        try:
            number = int(value)
            exact = not isinstance(value, bool) and number == (
                int(value) if isinstance(value, str) else value
            )
        except (TypeError, ValueError, OverflowError):
            exact = False
        if not exact or not _within(number, self.minimum, self.maximum):
            raise ValueError(f"give a whole number{_limits(self.minimum, self.maximum)}")
        return number


@dataclass(frozen=True)
class IntegerOr(OptionType):
    """A whole number or one fixed word, such as ``max``."""

    word: str
    integer: Integer = Integer()

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """What ``--help`` shows for the value."""
        return f"{self.integer.metavar}|{self.word}"

    @override
    def convert(self, value: Any) -> int | str:
        if value == self.word:
            return self.word
        try:
            return self.integer.convert(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {self.word}") from None


@dataclass(frozen=True)
class Float(OptionType):
    """A finite number between two limits; the lower one is excluded where ``above`` is set."""

    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    metavar: str = "X"

    @override
    def convert(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        low = self.above and number == self.minimum
        wrong = isinstance(value, bool) or not math.isfinite(number) or low
        if wrong or not _within(number, self.minimum, self.maximum):
            raise ValueError(f"give a number{_limits(self.minimum, self.maximum, self.above)}")
        return number

    @override
    def to_text(self, value: Any) -> str:
        short = f"{value:g}"
        return short if float(short) == value else str(value)


class Count(OptionType):
    """A positive whole number, which can be typed as ``500k``, ``2M`` or ``1.5G``."""

    metavar = "N"
    _units: ClassVar[dict[str, int]] = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}

    @override
    def convert(self, value: Any) -> int:
        found = parse_with_unit(str(value), self._units)
        if isinstance(value, bool) or found is None or found < 1 or found != int(found):
            raise ValueError("give a count like 500k or 2M")
        return int(found)

    @override
    def to_text(self, value: Any) -> str:
        return format_with_unit(value, {"G": 10**9, "M": 10**6, "k": 10**3}) or str(value)


class Size(OptionType):
    """A number of bytes, which is typed as ``5GB`` or ``500MiB``."""

    metavar = "SIZE"
    _units: ClassVar[dict[str, int]] = {
        "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    }  # fmt: skip

    @override
    def convert(self, value: Any) -> int:
        plain = isinstance(value, int) and not isinstance(value, bool)
        found = value if plain else parse_with_unit(str(value), self._units, unit_needed=True)
        if found is None or found < 1:
            raise ValueError("give a size like 5GB or 500MiB")
        return int(found)

    @override
    def to_text(self, value: Any) -> str:
        units = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "KB": 10**3}
        return format_with_unit(value, units) or f"{value // 1000}.{value % 1000:03}KB"


@dataclass(frozen=True)
class Listed(OptionType):
    """A list of values of one type, typed with commas between them."""

    item: OptionType
    metavar: str = "A,B,…"
    at_least: int = 0

    @override
    def convert(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, Iterable):
            value = [value]
        values = tuple(self.item.convert(part) for part in value)
        if len(values) < self.at_least:
            raise ValueError(f"give at least {self.at_least}")
        return values

    @override
    def to_text(self, value: Any) -> str:
        return ",".join(self.item.to_text(part) for part in value)


@dataclass(frozen=True)
class Repeated(OptionType):
    """A list of values of one type. The option is typed once for each value."""

    item: OptionType

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """What ``--help`` shows for one value."""
        return self.item.metavar

    @override
    def convert(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | Path) or not isinstance(value, Iterable):
            value = [value]
        return tuple(self.item.convert(part) for part in value)

    @override
    def to_json(self, value: Any) -> Any:
        return [self.item.to_json(part) for part in value]

    @override
    def to_text(self, value: Any) -> str:
        return ", ".join(self.item.to_text(part) for part in value)


class ItemError(ValueError):
    """One value of a mapping is wrong.

    Attributes:
        name, value: the item.
    """

    def __init__(self, name: str, value: Any, message: str) -> None:
        super().__init__(message)
        self.name, self.value = name, value


@dataclass(frozen=True)
class PerName(OptionType):
    """A mapping from names to values of one type.

    The command line has one option for each name, ``--NAME-SUFFIX``.

    Attributes:
        item: the type of the values.
        suffix: the end of the options' names, without a dash.
        names: returns the names that can have a value.
        help: returns the help text of a name's option.
    """

    item: OptionType
    suffix: str
    names: Callable[[], Iterable[str]]
    help: Callable[[str], str]

    def keywords(self) -> dict[str, str]:
        """Return each name's option, such as ``align_tokens``, with the name."""
        return {f"{name}_{self.suffix}": name for name in self.names()}

    @override
    def convert(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError("give a mapping from names to values")
        converted = {}
        for name, each in value.items():
            if name not in self.names():
                raise ItemError(name, each, f"choose from {', '.join(self.names())}")
            try:
                converted[name] = self.item.convert(each)
            except ValueError as error:
                raise ItemError(name, each, str(error)) from None
        return converted

    @override
    def to_json(self, value: Any) -> Any:
        return value and {name: self.item.to_json(each) for name, each in value.items()}


@dataclass(frozen=True)
class Location(OptionType):
    """A file, a directory, a dataset, or a word that is used instead.

    Only the last part of a path is recorded: a record must not name this machine's folders. Names
    on the hub are recorded whole.
    """

    metavar: str = "PATH"

    @override
    def convert(self, value: Any) -> str:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError(f"give {self.metavar}")
        return str(value)

    @override
    def to_json(self, value: Any) -> Any:
        if value is None:
            return None
        on_hub = self.metavar.count("MODEL") + self.metavar.count("DATASET") > 0
        if on_hub and value.count("/") == 1 and value[0] not in "./~" and not os.path.exists(value):
            return value
        return Path(value).name


def _within(number: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or number >= minimum) and (maximum is None or number <= maximum)


def _limits(minimum: float | None, maximum: float | None, above: bool = False) -> str:
    if minimum is not None and maximum is not None and above:
        return f" above {minimum} and at most {maximum}"
    if minimum is not None and maximum is not None:
        return f" from {minimum} to {maximum}"
    if minimum is not None:
        return f" above {minimum}" if above else f" of at least {minimum}"
    return "" if maximum is None else f" of at most {maximum}"
