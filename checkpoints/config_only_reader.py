"""Reading a checkpoint that has no weights: config.json is enough to plan a command."""

import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from hybridize.checkpoints.dtypes import itemsize
from hybridize.checkpoints.files import CONFIG, read_json_object
from hybridize.checkpoints.formats import config_from_json
from hybridize.checkpoints.header import TensorLocation
from hybridize.checkpoints.hub import find_on_hub
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.checkpoints.weight_files import choose_entry
from hybridize.errors import InputError

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "bfloat16", "float16")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""The suffixes of weight files. Without one, a directory is only a configuration."""

_USUAL_DTYPE = "bfloat16"  # nearly all published weights have it


class ConfigOnlyReader(CheckpointReader):
    """Names, shapes and dtype of the tensors that a config.json implies, without the tensors.

    Args:
        directory: the directory of config.json.

    Raises:
        InputError: config.json cannot be understood.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.files = directory, []
        path = directory / CONFIG
        self.config = read_json_object(path)
        format_, model = config_from_json(self.config, path)
        dtype = model.dtype or _USUAL_DTYPE
        if dtype not in _DTYPES:
            stated = json.dumps(dtype)
            raise InputError(f"{path}: dtype {stated} is not one of {', '.join(_DTYPES)}")
        self._locations = {
            entry.disk: TensorLocation(
                path, dtype, entry.shape, 0, prod(entry.shape) * itemsize(dtype)
            )
            for entry in format_.tensor_map(model)
        }

    @override
    def get(self, name: str, rows: slice | None = None) -> "torch.Tensor":
        raise InputError(f"{self.directory}: has no weights; `dry_run` works without them")

    @override
    def __exit__(self, *_: object) -> None:
        """Do nothing, because no file was opened."""


def open_for_planning(model: str | Path) -> CheckpointReader:
    """Open a checkpoint for its shapes. Its config.json is enough.

    Args:
        model: a directory, with or without weights, or a hub id. Of a hub id, only config.json is
            downloaded.

    Raises:
        InputError: see `CheckpointReader`, `ConfigOnlyReader` and `resolve`.
        HybridizeError: the connection, the hub or the cache fails.
    """
    repository = find_on_hub(model)
    if repository is not None:
        reader = ConfigOnlyReader(repository.fetch([CONFIG]))
        if any(name.endswith(WEIGHT_SUFFIXES) for name in repository.names()):
            choose_entry(repository, reader.config)  # refuses what the command would refuse
        return reader
    directory = Path(model)
    config_only = (directory / CONFIG).is_file() and not any(
        path.suffix in WEIGHT_SUFFIXES for path in directory.iterdir()
    )
    return ConfigOnlyReader(directory) if config_only else CheckpointReader(directory)
