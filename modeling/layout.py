"""The order of a model's blocks, as a string with one letter per block.

**A block is one norm and one mixer, with a residual connection around them.** The literature calls
this a sublayer. A decoder layer of transformers is two blocks here: attention (or Mamba-2), then an
MLP. A Llama with 32 layers has 64 blocks, and `layer_idx` counts blocks.

The letters are those of Nemotron-H (arXiv 2504.03624): ``*`` attention, ``M`` Mamba-2, ``-`` MLP.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridize.modeling.layers.kinds import ATTENTION, LAYER_KINDS, MAMBA


@dataclass(frozen=True)
class Layout:
    """The kinds of a model's blocks, in order.

    Llama-3.1-8B is ``*-`` thirty-two times. Nemotron-H-8B begins with ``M-M-M-M*-`` (arXiv
    2504.03624, figure 2).

    Args:
        pattern: one letter per block, see `LAYER_KINDS`.
        swapped: indices of the Mamba-2 blocks that a conversion has made from attention blocks.

    Raises:
        ValueError: the pattern has another letter or is empty, or a swapped block is not Mamba-2.
    """

    pattern: str
    swapped: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.pattern) - set(LAYER_KINDS))
        if unknown:
            known = ", ".join(f"{letter} ({kind.title})" for letter, kind in LAYER_KINDS.items())
            raise ValueError(f"pattern {self.pattern!r} has the letter {unknown[0]!r}; use {known}")
        if not self.pattern:
            raise ValueError("the pattern is empty; a model has at least one block")
        if any(self.pattern[index] != MAMBA for index in self.swapped):
            raise ValueError("a block in `swapped` is not Mamba-2")

    def __str__(self) -> str:
        return self.pattern

    def __len__(self) -> int:
        return len(self.pattern)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pattern)

    def indices(self, kind: str) -> tuple[int, ...]:
        """Return the indices of all blocks of one kind, given by its letter."""
        return tuple(index for index, letter in enumerate(self.pattern) if letter == kind)

    def swap(self, blocks: frozenset[int] | set[int]) -> "Layout":
        """Return the layout with some attention blocks replaced by Mamba-2.

        Args:
            blocks: indices of those blocks.

        Raises:
            ValueError: one of the blocks is not attention.
        """
        wrong = sorted(set(blocks) - set(self.indices(ATTENTION)))
        if wrong:
            raise ValueError(f"block {wrong[0]} is not attention")
        letters = [MAMBA if i in blocks else letter for i, letter in enumerate(self.pattern)]
        return Layout("".join(letters), self.swapped | frozenset(blocks))
