"""Parses budgets, such as ``24GiB@65536x4``."""

import re

from hybridize.option_types import Count, Float, Size

_AT = r"@(?P<context>\d+)(?P<k>k?)(?:x(?P<batch>\d+))?"


def parse_params(text: str) -> tuple[float | None, int | None]:
    """Parse `params`: a percentage of the model's own parameters (``70%``) or a count (``1.3B``).

    Returns:
        The percentage and None, or None and the count.

    Raises:
        ValueError: the text is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    try:
        if match is None:
            return None, Count().convert(text)
        return Float(0, 100, above=True).convert(match[1]), None
    except ValueError:
        raise ValueError("give a percentage like 70% or a number like 1.3B") from None


def parse_memory(text: str) -> tuple[int, int, int]:
    """Parse `memory`: ``SIZE@CONTEXT`` or ``SIZE@CONTEXTxBATCH``, such as ``24GiB@65536x4``.

    Returns:
        The bytes, the context and the batch size.

    Raises:
        ValueError: the text has another form, or a number is 0.
    """
    match = re.fullmatch(rf"(?P<size>[^@]+){_AT}", text.strip().lower())
    try:
        if match is None:
            raise ValueError
        size = Size().convert(match["size"])
    except ValueError:
        raise ValueError("give SIZE@CONTEXT[xBATCH], such as 24GiB@65536x4") from None
    context, batch = _context_and_batch(match)
    if not context or not batch:
        raise ValueError("the context and the batch must be at least 1")
    return size, context, batch


def parse_latency(text: str) -> tuple[float, int | None, int]:
    """Parse `latency`: ``SHARE``, ``SHARE@CONTEXT`` or ``SHARE@CONTEXTxBATCH``.

    Args:
        text: such as ``0.7``, ``70%`` or ``0.7@65536x4``.

    Returns:
        The share, the context (None if it is left out) and the batch size.

    Raises:
        ValueError: the text has another form, or a number is out of range.
    """
    match = re.fullmatch(
        rf"(?P<share>\d+(?:\.\d+)?)(?P<percent>%?)(?:{_AT})?", text.strip().lower()
    )
    if match is None:
        raise ValueError("give SHARE[@CONTEXT[xBATCH]], such as 0.7@65536x4")
    share = float(match["share"]) / (100 if match["percent"] else 1)
    context, batch = _context_and_batch(match) if match["context"] else (None, 1)
    if not 0 < share <= 1 or context == 0 or not batch:
        raise ValueError(
            "the share must be above 0 and at most 1, the context and the batch at least 1"
        )
    return share, context, batch


def _context_and_batch(match: re.Match[str]) -> tuple[int, int]:
    return int(match["context"]) * (1024 if match["k"] else 1), int(match["batch"] or 1)
