"""Read and write numbers with a unit, such as ``2M``, ``5GB``, ``1.5 GiB`` or ``3 min 20 s``."""

from decimal import Decimal

_LONGEST = 30
"""The most characters that a number may have."""


def parse_with_unit(
    text: str, units: dict[str, int], *, unit_needed: bool = False
) -> Decimal | None:
    """Parse a number with an optional unit; return None if the text is not such a number.

    Args:
        text: what a user typed, such as ``2M`` or ``1.5 GiB``.
        units: each unit in lower case, with its factor.
        unit_needed: whether a number without a unit is wrong.
    """
    lower = text.strip().lower()
    if len(lower) > _LONGEST:
        return None
    for unit in sorted(units, key=len, reverse=True):
        number = lower.removesuffix(unit).strip()
        if lower.endswith(unit) and number.replace(".", "", 1).isdecimal():
            return Decimal(number) * units[unit]
    plain = lower.replace(".", "", 1).isdecimal() and not unit_needed
    return Decimal(lower) if plain else None


def format_with_unit(value: int, units: dict[str, int]) -> str | None:
    """Format a number in the first unit that needs at most one digit after the point.

    Args:
        value: the number.
        units: each unit with its factor, in the order in which they are tried.

    Returns:
        The text; None if every unit needs more digits.
    """
    for unit, factor in units.items():
        if value >= factor and value * 10 % factor == 0:
            whole, tenth = divmod(value * 10 // factor, 10)
            return f"{whole}.{tenth}{unit}" if tenth else f"{whole}{unit}"
    return None


def short_number(value: float) -> str:
    """Return a number that is easy to read: ``32.3``, ``5,120``, ``64.0M`` or ``1.5G``."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{value / factor:.1f}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def size_in_words(size: float) -> str:
    """Return a number of bytes in powers of 1024, such as ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_in_words(seconds: float) -> str:
    """Return a duration such as ``40 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
