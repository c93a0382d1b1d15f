"""The order of a model's blocks as a string in Nemotron-H's alphabet."""

from collections.abc import Iterator
from dataclasses import dataclass

ATTENTION = "*"
MAMBA = "M"
MLP = "-"
KINDS = {ATTENTION: "attention", MAMBA: "mamba", MLP: "mlp"}


@dataclass(frozen=True)
class Layout:
    """The kinds of a model's pre-norm residual blocks, in order.

    Llama-3.1-8B is ``*-`` thirty-two times; Nemotron-H-8B begins ``M-M-M-M*-``
    (arXiv 2504.03624, figure 2).

    Args:
        pattern: one letter per block: ``*`` attention, ``M`` Mamba-2, ``-`` MLP.
        swapped: indices of the blocks that were attention before a conversion.

    Raises:
        ValueError: another letter, no block at all, or a swapped block that is not Mamba-2.
    """

    pattern: str
    swapped: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.pattern) - set(KINDS))
        if unknown:
            raise ValueError(
                f"pattern {self.pattern!r} has the letter {unknown[0]!r}; "
                "use * (attention), M (Mamba-2) and - (MLP)"
            )
        if not self.pattern:
            raise ValueError("the pattern is empty; a model has at least one block")
        if any(self.pattern[index] != MAMBA for index in self.swapped):
            raise ValueError("only Mamba-2 blocks can have been swapped for attention")

    def __str__(self) -> str:
        return self.pattern

    def __len__(self) -> int:
        return len(self.pattern)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pattern)

    def indices(self, kind: str) -> tuple[int, ...]:
        """Return the places of all blocks of one kind."""
        return tuple(index for index, letter in enumerate(self.pattern) if letter == kind)

    def swap(self, blocks: frozenset[int] | set[int]) -> "Layout":
        """Return the layout with the attention blocks at ``blocks`` turned into Mamba-2.

        Raises:
            ValueError: a block that is not attention.
        """
        wrong = sorted(set(blocks) - set(self.indices(ATTENTION)))
        if wrong:
            raise ValueError(f"block {wrong[0]} is not attention")
        letters = [MAMBA if i in blocks else letter for i, letter in enumerate(self.pattern)]
        return Layout("".join(letters), self.swapped | frozenset(blocks))
