"""Reading the headers of a checkpoint: names, shapes and dtypes, without the tensors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hybridize.checkpoints.files import CONFIG, PROVENANCE
from hybridize.checkpoints.hub import find_on_hub
from hybridize.checkpoints.hub_repository import HubRepository
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.checkpoints.weight_files import find_tensors
from hybridize.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class HubHeaderReader(CheckpointReader):
    """A model on the hub. Its config.json and ``hybridize.json`` are downloaded, its tensors not.

    Args:
        repository: the model.

    Raises:
        InputError: see `CheckpointReader`.
        HybridizeError: the connection, the hub or the cache fails.
    """

    def __init__(self, repository: HubRepository) -> None:
        self.directory = repository.fetch(
            name for name in (CONFIG, PROVENANCE) if name in repository.names()
        )
        self.config = repository.read_json(CONFIG)
        self.files, self._locations = find_tensors(repository, self.config)

    @override
    def get_bytes(
        self, name: str, rows: slice | None = None
    ) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        raise InputError(f"{self.directory}: only the headers of the weights were read")

    @override
    def hash_in_background(self) -> None:
        raise InputError(f"{self.directory}: only the headers of the weights were read")

    @override
    def __exit__(self, *_: object) -> None:
        """Do nothing, because no file was opened."""


def open_headers(model: str | Path) -> CheckpointReader:
    """Open a checkpoint for the names, shapes and dtypes of its tensors.

    Args:
        model: a directory or a hub id. Of a hub id, only config.json, ``hybridize.json`` and the
            headers of the weights are downloaded.

    Raises:
        InputError: see `CheckpointReader` and `resolve`.
        HybridizeError: the connection, the hub or the cache fails.
    """
    repository = find_on_hub(model)
    return CheckpointReader(model) if repository is None else HubHeaderReader(repository)
