"""The base class of all pruning axes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, cast

import torch

from hybridize.modeling.layers.sizes import BlockSizes
from hybridize.modeling.model_spec import ModelSpec

WHOLE_MODEL = -1
"""The block index that means all blocks together, for an axis that resizes the whole model."""

LAST_LINEAR = ("o_proj", "out_proj", "down_proj")
"""The names of a mixer's last linear layer, which writes to the residual stream."""

Slices = dict[str, tuple[int, torch.Tensor]]
"""By parameter name: the dimension to slice, and the indices to keep."""

Sizes = TypeVar("Sizes", bound=BlockSizes | ModelSpec)


@dataclass(frozen=True)
class ActivationStats:
    """The measured activations of one block or, for the hidden size, after the norms.

    Attributes:
        output: ``(width,)``. For each input channel of the block's last linear layer: its mean
            square times the squared norm of the weights that read it. For the hidden size: the mean
            square of each channel of the normalized residual stream, summed over all norms.
        state: ``(n_groups × d_state,)``, the product of the mean squares of B and C. None unless
            the block is Mamba-2.
    """

    output: torch.Tensor
    state: torch.Tensor | None = None


class Axis(ABC, Generic[Sizes]):
    """One kind of unit that can be removed from a model, such as an attention head.

    Nearly all axes resize the blocks of one kind. Their methods take the sizes of one block. The
    axis of the hidden size resizes the whole model. Its methods take the model's configuration.

    Args:
        name: the axis's name in the registry.

    Attributes:
        unit: what tables call the number of units, such as ``MLP width``.
        block_kind: the class of the blocks' sizes; None if the axis resizes the whole model.
        varies_per_block: whether ``widths="per-block"`` may give each block its own number of
            units. Only for the axis that is applied last to its kind of block.
    """

    unit: ClassVar[str]
    block_kind: ClassVar[type[BlockSizes] | None]
    varies_per_block: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    # Every axis defines these four.

    @abstractmethod
    def count(self, sizes: Sizes) -> int:
        """Return the number of units."""

    @abstractmethod
    def resize(self, sizes: Sizes, count: int) -> Sizes:
        """Return the sizes with another number of units."""

    @abstractmethod
    def score(self, sizes: Sizes, stats: ActivationStats) -> torch.Tensor:
        """Return the importance of each unit, in the shape that `keep` takes."""

    @abstractmethod
    def slices(self, sizes: Sizes, kept: torch.Tensor) -> Slices:
        """Return the slices of the parameters that a cut keeps.

        Args:
            sizes: the sizes before the cut.
            kept: the units to keep, as `keep` returned them.

        Returns:
            Slices by parameter name: a block axis uses the names within the mixer, the axis of the
            whole model uses the model's names.
        """

    # An axis overrides these where its units are not independent of each other.

    def increment(self, sizes: Sizes, multiple_of: int | None) -> int:
        """Return the difference between two numbers of units that the search tries.

        Args:
            sizes: the sizes before the cut.
            multiple_of: the option `multiple_of`; None if it was not given.
        """
        del sizes, multiple_of
        return 1

    def allows(self, sizes: Sizes, count: int) -> bool:
        """Return whether ``count`` units are possible."""
        return 0 < count <= self.count(sizes)

    def keep(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """Return the indices of the units with the highest scores, in ascending order.

        Args:
            scores: one block's scores, as `score` returned them. Units are chosen along the last
                dimension, separately for each index of the other dimensions.
            count: the number of units to keep.
        """
        return scores.topk(count).indices.sort().values

    def lost_share(self, scores: torch.Tensor, count: int) -> float:
        """Return the share of the total score that is lost when ``count`` units are kept."""
        total = float(scores.sum())
        kept = float(scores.gather(-1, self.keep(scores, count)).sum())
        return 1 - kept / total if total > 0 else 0.0

    # The search and the cut call these, for a whole model.

    def blocks(self, config: ModelSpec) -> tuple[int, ...]:
        """Return the indices of the blocks with such units.

        Returns:
            ``(WHOLE_MODEL,)`` for an axis of the whole model. Empty if the model has no such blocks
            or if they have different numbers of units.
        """
        if self.block_kind is None:
            return (WHOLE_MODEL,)
        kind = self.block_kind
        found = [i for i, block in enumerate(config.blocks) if isinstance(block, kind)]
        counts = {self.count(self.sizes_in(config, block_idx)) for block_idx in found}
        return tuple(found) if len(counts) == 1 else ()

    def sizes_in(self, config: ModelSpec, block_idx: int) -> Sizes:
        """Return the ``sizes`` argument of the other methods for one of the `blocks`."""
        return cast(Sizes, config if block_idx == WHOLE_MODEL else config.blocks[block_idx])

    def first_sizes(self, config: ModelSpec) -> Sizes:
        """Return the sizes of the first of the `blocks`."""
        return self.sizes_in(config, self.blocks(config)[0])

    def count_in(self, config: ModelSpec) -> int:
        """Return the number of units in each of the `blocks`."""
        return self.count(self.first_sizes(config))

    def resize_in(self, config: ModelSpec, counts: Mapping[int, int]) -> ModelSpec:
        """Return the model with other numbers of units.

        Args:
            config: the model.
            counts: by block index, the number of units; other blocks stay.
        """
        if self.block_kind is None:
            return cast(ModelSpec, self.resize(cast(Sizes, config), counts[WHOLE_MODEL]))
        return config.replace_blocks(
            cast(BlockSizes, self.resize(self.sizes_in(config, block_idx), counts[block_idx]))
            if block_idx in counts
            else block
            for block_idx, block in enumerate(config.blocks)
        )


def last_linear(sizes: BlockSizes) -> str | None:
    """Return the name of a mixer's last linear layer; None if it is not in `LAST_LINEAR`."""
    shapes = sizes.shapes(1)
    return next((name for name in LAST_LINEAR if f"{name}.weight" in shapes), None)


def rounded_increment(count: int, multiple_of: int | None) -> int:
    """Return the increment of a large size: ``multiple_of``, or about a sixteenth of the size.

    The latter is a power of two of at most 256, which matrix multiplication kernels prefer.
    """
    return multiple_of or min(256, 1 << max(0, (max(1, count // 16)).bit_length() - 1))


def rows_of(units: torch.Tensor, width: int) -> torch.Tensor:
    """Return the indices of the rows of some units, where each unit has ``width`` rows."""
    return (units[..., None] * width + torch.arange(width)).flatten()
