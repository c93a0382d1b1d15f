"""New blocks from a checkpoint that has them already, usually one whose blocks were aligned.

A block that was trained to do what its attention block does tells better what losing that
attention costs than one straight from the closed form; and it need not be trained again.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import MambaSizes


class Donor:
    """A hybrid whose Mamba-2 blocks are taken over; a context manager, as it is read from.

    Args:
        directory: the hybrid.
        config: of the checkpoint that the blocks go into.

    Raises:
        InputError: it cannot be read, or is not of the same shape.
    """

    def __init__(self, directory: Path, config: HybridConfig) -> None:
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
                        f"`init={directory}`: its {name} is {mine} and the model's {wanted}; "
                        "give a hybrid that was converted from the same model"
                    )
            self._tensors = CheckpointTensors(reader, format_, self._config)
            self._open = stack.pop_all()

    def values(self, index: int, sizes: MambaSizes) -> dict[str, torch.Tensor]:
        """Return the values of a new block: name in the mixer to tensor.

        Raises:
            InputError: the hybrid has no Mamba-2 block of this size there.
        """
        found = self._config.blocks[index]
        if not isinstance(found, MambaSizes):
            raise InputError(
                f"`init={self._directory}`: block {index} is not Mamba-2 there; convert the model "
                "with `attention=0%` to have a block for every place"
            )
        if found != sizes:
            mine, wanted = asdict(found), asdict(sizes)
            name = next(name for name in mine if mine[name] != wanted[name])
            raise InputError(
                f"`init={self._directory}`: block {index} has {name} {mine[name]}, and the new one "
                f"{wanted[name]}; give the `ssm_…` options that it was converted with"
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
