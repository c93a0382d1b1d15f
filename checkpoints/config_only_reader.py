"""A checkpoint of which only config.json is at hand: enough to plan, and nothing to read."""

import json
from math import prod
from pathlib import Path
from types import TracebackType

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.files import CONFIG, read_json_object
from hybridize.checkpoints.formats import config_from_json
from hybridize.checkpoints.header import Place
from hybridize.errors import InputError
from hybridize.modeling.devices import DTYPES


class PlannedReader(CheckpointReader):
    """The tensors that a config.json implies: their names, shapes and dtype, and none of them.

    Args:
        directory: where config.json lies.

    Raises:
        InputError: config.json cannot be understood.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.files = directory, []
        path = directory / CONFIG
        self.config = read_json_object(path)
        format_, config = config_from_json(self.config, path)
        # What transformers calls it now, what it called it, and what nearly all weights come in.
        name = self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"
        if not isinstance(name, str) or name not in DTYPES:
            raise InputError(f"{path}: dtype {json.dumps(name)} is not one of {', '.join(DTYPES)}")
        dtype = DTYPES[name]
        self._places = {
            entry.disk: Place(path, dtype, entry.shape, 0, prod(entry.shape) * dtype.itemsize)
            for entry in format_.tensor_map(config)
        }

    def get(self, name: str) -> torch.Tensor:
        """Refuse: there is nothing to read.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.directory}: has no weights; --dry-run works without them")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: no file was opened."""


def open_to_plan(directory: Path) -> CheckpointReader:
    """Open a checkpoint for its shapes: the files' own where there are any, else config.json's.

    Raises:
        InputError: see `CheckpointReader` and `PlannedReader`.
    """
    alone = (directory / CONFIG).is_file() and not any(
        path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
        for path in directory.iterdir()
    )
    return PlannedReader(directory) if alone else CheckpointReader(directory)
