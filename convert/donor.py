"""New blocks that are copied from another hybrid of the same model, the donor.

The donor's blocks are usually aligned: each was trained to give the output of its attention block.
With them, the sensitivity selection measures the cost of removing attention more precisely than
with calibrated blocks. They need no second training.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch


class Donor:
    """A hybrid whose Mamba-2 blocks are copied. A context manager, which closes its files.

    Args:
        directory: the hybrid.
        config: the configuration of the checkpoint that is converted.

    Raises:
        InputError: the hybrid cannot be read, or has another number of blocks or hidden size.
    """

    def __init__(self, directory: Path, config: ModelSpec) -> None:
        self._directory = directory
        with ExitStack() as stack:
            reader = stack.enter_context(CheckpointReader(directory))
            format_, self._config = read_config(reader)
            for name, mine, wanted in (
                ("number of blocks", len(self._config.blocks), len(config.blocks)),
                ("hidden size", self._config.hidden_size, config.hidden_size),
            ):
                if mine != wanted:
                    raise InputError(
                        f"`init={directory}`: its {name} is {mine}, but the model's is {wanted}; "
                        "give a hybrid that was converted from the same model"
                    )
            self._tensors = CheckpointTensors(reader, format_, self._config)
            self._open = stack.pop_all()

    def values(self, index: int, sizes: MambaSizes) -> "dict[str, torch.Tensor]":
        """Return the values of a new block: name in the mixer to tensor.

        Raises:
            InputError: the hybrid has no Mamba-2 block of these sizes at this index.
        """
        found = self._config.blocks[index]
        if not isinstance(found, MambaSizes):
            raise InputError(
                f"`init={self._directory}`: its block {index} is not Mamba-2; give a hybrid that "
                "was converted with `attention=0%`, which has all of them"
            )
        if found != sizes:
            mine, wanted = asdict(found), asdict(sizes)
            name = next(name for name in mine if mine[name] != wanted[name])
            raise InputError(
                f"`init={self._directory}`: its block {index} has {name} {mine[name]}, but the new "
                f"block {wanted[name]}; give the `ssm_groups`, `ssm_expand`, `d_state` and "
                "`ssm_bias` that it was converted with"
            )
        shapes = sizes.shapes(self._config.hidden_size)
        return {name: self._tensors.get(f"model.blocks.{index}.mixer.{name}") for name in shapes}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
