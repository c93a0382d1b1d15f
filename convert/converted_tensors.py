"""The tensors of a converted model. Torch is imported when the first tensor is read."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from typing_extensions import override

from hybridize.checkpoints.dtypes import torch_dtype
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.tensors import Tensors
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

NewValues = Callable[[int, MambaSizes], "dict[str, torch.Tensor]"]
"""Takes a new block's index in the layout and its sizes. Returns its values, as a mapping from the
name in the mixer to a float32 tensor."""


class ConvertedTensors(Tensors):
    """The tensors of a converted model: those of the source, and those of new blocks.

    Args:
        source: the source's tensors.
        before: the source's configuration.
        after: the configuration of the result; it has Mamba-2 instead of the swapped attention.
        new_values: makes the values of a new block.
        allow_nonfinite: accept new blocks that contain NaN or infinity.

    Raises:
        InputError: (from `get`) a new block contains NaN or infinity.
    """

    def __init__(
        self,
        source: Tensors,
        before: ModelSpec,
        after: ModelSpec,
        new_values: NewValues,
        *,
        allow_nonfinite: bool = False,
    ) -> None:
        self._source, self._after, self._new_values = source, after, new_values
        self._allow_nonfinite = allow_nonfinite
        self._swapped = {
            index
            for index, (old, new) in enumerate(zip(before.layout, after.layout, strict=True))
            if old != new
        }
        self._current: tuple[int, dict[str, torch.Tensor]] | None = None

    @override
    def get(self, name: str) -> "torch.Tensor":
        index = self._swapped_block(name)
        if index is None:
            return self._source.get(name)
        if self._current is None or self._current[0] != index:
            self._current = None  # free the memory of the previous block first
            self._current = (index, self._values(index))
        return self._current[1][name.split(".mixer.")[1]]

    @override
    def dtype(self, name: str) -> str:
        index = self._swapped_block(name)
        return self._source.dtype(
            name if index is None else f"model.blocks.{index}.mixer.q_proj.weight"
        )

    def _swapped_block(self, name: str) -> int | None:
        if ".mixer." not in name:
            return None
        index = int(name.split(".")[2])
        return index if index in self._swapped else None

    def _values(self, index: int) -> "dict[str, torch.Tensor]":
        mamba = self._after.blocks[index]
        assert isinstance(mamba, MambaSizes)
        values = self._new_values(index, mamba)
        dtype = torch_dtype(self.dtype(f"model.blocks.{index}.mixer.in_proj.weight"))
        cast = {name: value.to(dtype) for name, value in values.items()}
        bad = [name for name, value in cast.items() if not is_finite(value)]
        if bad and not self._allow_nonfinite:
            raise InputError(
                f"block {index}: its new {bad[0]} contains NaN or infinity, because the weights "
                "of the attention are too large; `allow_nonfinite` accepts that"
            )
        return cast
