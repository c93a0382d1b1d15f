"""The checkpoint that is pruned, open for reading."""

import hashlib
import json

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.tensors import CheckpointTensors


class Source:
    """The checkpoint that is pruned.

    Args:
        reader: reads its files.

    Raises:
        InputError: the checkpoint is damaged, or its configuration contradicts itself.

    Attributes:
        directory: the checkpoint's directory.
        format, config: its on-disk format and its configuration.
        tensors: its tensors, under the model's own names.
        dtype: torch's name of the dtype of its first tensor.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader, self.directory = reader, reader.directory
        self.format, self.config = read_config(reader)
        self.tensors = CheckpointTensors(reader, self.format, self.config)
        self.tensors.check_config()
        self.dtype = reader.dtype(reader.names[0])
        reader.hash_in_background()

    @property
    def fingerprint(self) -> str:
        """One hash of all weight files."""
        hashes = json.dumps(sorted(self.reader.sha256().items()))
        return hashlib.sha256(hashes.encode()).hexdigest()
