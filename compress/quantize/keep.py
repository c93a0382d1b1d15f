"""Which blocks stay in their own precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridize.errors import InputError

DEFAULT_ENDS = 4
"""Blocks at either end that Nemotron-H leaves in bfloat16 (arXiv 2504.03624)."""

_BLOCKS_PER_END = 8
"""A shallow model's ends are an eighth of its blocks each, one at least."""


@dataclass(frozen=True)
class Keep:
    """What ``--keep-bf16`` asks for.

    Attributes:
        ends: blocks to keep at either end.
        budget: blocks to keep wherever it matters most; None unless it is ``auto:BUDGET``.
    """

    ends: int
    budget: int | None = None


@dataclass(frozen=True)
class KeptBlock:
    """A block that was not quantized, and why."""

    block: int
    kind: str
    reason: str


def parse_keep(text: str | int | None, blocks: Sequence[int]) -> Keep:
    """Understand ``--keep-bf16``.

    Args:
        text: a number, ``auto:N``, ``auto:PERCENT%``, or None for the default.
        blocks: those that can be quantized.

    Raises:
        InputError: it is none of these, or leaves nothing to quantize.
    """
    if text is None:
        return Keep(min(DEFAULT_ENDS, max(1, len(blocks) // _BLOCKS_PER_END)))
    word, _, budget = str(text).partition(":")
    number = budget if word == "auto" else word
    share = number.removesuffix("%")
    if not share.isdecimal() or (number != share and word != "auto"):
        raise InputError(f"--keep-bf16 {text}: give a number, auto:N or auto:PERCENT%")
    count = int(share) if number == share else round(int(share) / 100 * len(blocks))
    keep = Keep(0, count) if word == "auto" else Keep(count)
    if max(2 * keep.ends, keep.budget or 0) >= len(blocks):
        raise InputError(
            f"--keep-bf16 {text}: leaves none of the {len(blocks)} blocks to quantize; keep fewer"
        )
    return keep


def choose_ends(keep: Keep, blocks: Sequence[int], layout: str) -> tuple[KeptBlock, ...]:
    """Keep the first and the last blocks."""
    if not keep.ends:
        return ()
    first = [(block, "first") for block in blocks[: keep.ends]]
    last = [(block, "last") for block in blocks[-keep.ends :]]
    many = f" {keep.ends}" if keep.ends > 1 else ""
    return tuple(
        KeptBlock(block, layout[block], f"among the {end}{many}") for block, end in first + last
    )


def choose_sensitive(
    keep: Keep, divergences: Mapping[int, float], layout: str
) -> tuple[KeptBlock, ...]:
    """Keep the blocks that cost the most when they are quantized.

    Args:
        keep: with a budget.
        divergences: by block, what quantizing it alone costs, in nats per token.
        layout: the model's.
    """
    ranked = sorted(divergences, key=lambda block: (-divergences[block], block))
    return tuple(
        KeptBlock(block, layout[block], f"costs {divergences[block]:.2e} nats per token")
        for block in sorted(ranked[: keep.budget])
    )
