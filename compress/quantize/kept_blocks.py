"""Chooses the blocks that are not quantized."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridize.errors import InputError

DEFAULT_ENDS = 4
"""Number of blocks at either end that Nemotron-H leaves in bfloat16 (arXiv 2504.03624)."""

_BLOCKS_PER_END = 8
"""In a shallow model, an eighth of the blocks is kept at either end, but at least one block."""


@dataclass(frozen=True)
class Keep:
    """The option `keep_bf16`, as numbers of blocks.

    Attributes:
        ends: the number of blocks to keep at either end.
        budget: the number of blocks to keep among those whose quantization costs the most. None
            unless the option is ``auto:N`` or ``auto:PERCENT%``.
    """

    ends: int
    budget: int | None = None


@dataclass(frozen=True)
class KeptBlock:
    """A block that is not quantized, its letter in the layout, and the reason."""

    block: int
    kind: str
    reason: str


def match_keep(text: str | int) -> re.Match[str]:
    """Parse `keep_bf16`.

    Returns:
        A match with the groups ``auto``, ``count`` and ``percent``.

    Raises:
        ValueError: the text is not a number, ``auto:N`` or ``auto:PERCENT%``.
    """
    match = re.fullmatch(r"(?P<auto>auto:)?(?P<count>\d+)(?P<percent>%)?", str(text))
    if match is None or (match["percent"] and not match["auto"]):
        raise ValueError("give a number, auto:N or auto:PERCENT%")
    return match


def parse_keep(text: str | int | None, blocks: Sequence[int]) -> Keep:
    """Return the numbers of blocks that `keep_bf16` asks to keep.

    Args:
        text: a number, ``auto:N``, ``auto:PERCENT%``, or None for the default.
        blocks: the blocks that the scheme can quantize.

    Raises:
        ValueError: the text has another form.
        InputError: no block would be quantized.
    """
    if text is None:
        return Keep(min(DEFAULT_ENDS, max(1, len(blocks) // _BLOCKS_PER_END)))
    match = match_keep(text)
    count = int(match["count"])
    if match["percent"]:
        count = round(count / 100 * len(blocks))
    keep = Keep(0, count) if match["auto"] else Keep(count)
    if max(2 * keep.ends, keep.budget or 0) >= len(blocks):
        raise InputError(
            f"`keep_bf16={text}` leaves none of the {len(blocks)} blocks to quantize; keep fewer"
        )
    return keep


def choose_ends(keep: Keep, blocks: Sequence[int], layout: str) -> tuple[KeptBlock, ...]:
    """Keep the first and the last blocks.

    Args:
        keep: the numbers of blocks.
        blocks: the blocks that the scheme can quantize.
        layout: the model's.
    """
    if not keep.ends:
        return ()
    first = [(block, "first") for block in blocks[: keep.ends]]
    last = [(block, "last") for block in blocks[-keep.ends :]]
    number = f" {keep.ends}" if keep.ends > 1 else ""
    return tuple(
        KeptBlock(block, layout[block], f"among the {end}{number}") for block, end in first + last
    )


def choose_sensitive(keep: Keep, costs: Mapping[int, float], layout: str) -> tuple[KeptBlock, ...]:
    """Keep the blocks whose quantization costs the most.

    Args:
        keep: the numbers of blocks; the budget must be set.
        costs: by block, the KL divergence in nats per token when this block alone is quantized.
        layout: the model's.
    """
    ranked = sorted(costs, key=lambda block: (-costs[block], block))
    return tuple(
        KeptBlock(block, layout[block], f"costs {costs[block]:.2e} nats per token")
        for block in sorted(ranked[: keep.budget])
    )
