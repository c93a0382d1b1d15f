"""Types of options: how a value is read, from Python or from the command line, and checked.

A type's ``convert`` takes a Python value or the text that a user typed, and returns the value that
the program uses. Both ways in are checked by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


class OptionType:
    """The base of all types.

    Attributes:
        metavar: what ``--help`` shows for the value.
    """

    metavar: str = "TEXT"

    def convert(self, value: Any) -> Any:
        """Return the value to use.

        Raises:
            ValueError: the value is wrong; the message says what is right.
        """
        raise NotImplementedError

    def to_json(self, value: Any) -> Any:
        """Return the value as a record in JSON holds it."""
        return list(value) if isinstance(value, tuple) else value

    def to_text(self, value: Any) -> str:
        """Return the value as a user would type it."""
        return str(value)


class Flag(OptionType):
    """A switch: true or false."""

    metavar = ""

    def convert(self, value: Any) -> bool:
        """Return the switch's state; see `OptionType.convert`."""
        if not isinstance(value, bool):
            raise ValueError("choose True or False")
        return value


@dataclass(frozen=True)
class Text(OptionType):
    """Any text that is not empty; numbers become text."""

    metavar: str = "TEXT"

    def convert(self, value: Any) -> str:
        """Return the text; see `OptionType.convert`."""
        if isinstance(value, bool) or not isinstance(value, str | int | Path) or not str(value):
            raise ValueError(f"give {self.metavar}")
        return str(value)


class Choice(OptionType):
    """One of several names."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.metavar = "|".join(names)

    def convert(self, value: Any) -> str:
        """Return the name; see `OptionType.convert`."""
        if value not in self.names:
            raise ValueError(f"choose one of {', '.join(self.names)}")
        return str(value)


@dataclass(frozen=True)
class Whole(OptionType):
    """A whole number between two limits, both included."""

    minimum: int | None = None
    maximum: int | None = None
    metavar: str = "N"

    def convert(self, value: Any) -> int:
        """Return the number; see `OptionType.convert`."""
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
class WholeOr(OptionType):
    """A whole number, or a word that stands for one."""

    word: str
    whole: Whole = Whole()

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """What ``--help`` shows for the value."""
        return f"{self.whole.metavar}|{self.word}"

    def convert(self, value: Any) -> int | str:
        """Return the number or the word; see `OptionType.convert`."""
        if value == self.word:
            return self.word
        try:
            return self.whole.convert(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {self.word}") from None


@dataclass(frozen=True)
class Number(OptionType):
    """A finite number between two limits; the lower one is excluded where ``above`` is set."""

    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    metavar: str = "X"

    def convert(self, value: Any) -> float:
        """Return the number; see `OptionType.convert`."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        low = self.above and number == self.minimum
        wrong = isinstance(value, bool) or not math.isfinite(number) or low
        if wrong or not _within(number, self.minimum, self.maximum):
            raise ValueError(f"give a number{_limits(self.minimum, self.maximum, self.above)}")
        return number


class Count(OptionType):
    """A positive whole number that may be typed as ``500k``, ``2M`` or ``1.5G``."""

    metavar = "N"
    _units: ClassVar[dict[str, int]] = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}

    def convert(self, value: Any) -> int:
        """Return the number; see `OptionType.convert`."""
        found = _scaled(str(value), self._units)
        if isinstance(value, bool) or found is None or found < 1 or found != int(found):
            raise ValueError("give a count like 500k or 2M")
        return int(found)

    def to_text(self, value: Any) -> str:
        """Return the shortest spelling, such as ``8M``."""
        for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
            if value >= factor and value * 10 % factor == 0:
                return f"{value / factor:g}{unit}"
        return str(value)


class Size(OptionType):
    """A number of bytes that may be typed as ``5GB`` or ``500MiB``."""

    metavar = "SIZE"
    _units: ClassVar[dict[str, int]] = {
        "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    }  # fmt: skip

    def convert(self, value: Any) -> int:
        """Return the bytes; see `OptionType.convert`."""
        plain = isinstance(value, int) and not isinstance(value, bool)
        found = value if plain else _scaled(str(value), self._units, unit_needed=True)
        if found is None or found < 1:
            raise ValueError("give a size like 5GB or 500MiB")
        return int(found)

    def to_text(self, value: Any) -> str:
        """Return the size in decimal units, such as ``5GB``."""
        for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
            if value >= factor:
                return f"{value / factor:g}{unit}"
        return str(value)


@dataclass(frozen=True)
class Listed(OptionType):
    """A list of values of one type, which are typed with commas between them."""

    item: OptionType
    metavar: str = "A,B,…"
    at_least: int = 0

    def convert(self, value: Any) -> tuple[Any, ...]:
        """Return the values; see `OptionType.convert`."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, Iterable):
            value = [value]
        values = tuple(self.item.convert(part) for part in value)
        if len(values) < self.at_least:
            raise ValueError(f"give at least {self.at_least}")
        return values

    def to_text(self, value: Any) -> str:
        """Return the values with commas between them."""
        return ",".join(self.item.to_text(part) for part in value)


@dataclass(frozen=True)
class Repeated(OptionType):
    """A list of values of one type, for each of which the option is typed again."""

    item: OptionType

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """What ``--help`` shows for one value."""
        return self.item.metavar

    def convert(self, value: Any) -> tuple[Any, ...]:
        """Return the values; see `OptionType.convert`."""
        if isinstance(value, str | Path):
            value = [value]
        return tuple(self.item.convert(part) for part in value)

    def to_json(self, value: Any) -> Any:
        """Return the values as JSON holds them."""
        return [self.item.to_json(part) for part in value]

    def to_text(self, value: Any) -> str:
        """Return the values with commas between them."""
        return ", ".join(self.item.to_text(part) for part in value)


@dataclass(frozen=True)
class Location(OptionType):
    """A file, a directory, a dataset, or a word that stands for one of them."""

    metavar: str = "PATH"

    def convert(self, value: Any) -> str:
        """Return the location as text; see `OptionType.convert`."""
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError(f"give {self.metavar}")
        return str(value)

    def to_json(self, value: Any) -> Any:
        """Return the last part alone, which names no folder of this machine."""
        return None if value is None else Path(value).name


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


def _scaled(text: str, units: dict[str, int], *, unit_needed: bool = False) -> float | None:
    """Read a number with a unit behind it; None where the text is none."""
    lower = text.strip().lower()
    for unit in sorted(units, key=len, reverse=True):
        number = lower.removesuffix(unit).strip()
        if lower.endswith(unit) and number.replace(".", "", 1).isdecimal():
            return round(float(number) * units[unit], 6)
    plain = lower.replace(".", "", 1).isdecimal() and not unit_needed
    return float(lower) if plain else None
