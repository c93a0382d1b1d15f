"""Reading a checkpoint directory, one tensor at a time, from any number of safetensors files.

Opening one reads config.json and the headers; torch is imported when the first tensor is read.
"""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hybridize.checkpoints.buffers import empty_bytes
from hybridize.checkpoints.carried_files import copied_files
from hybridize.checkpoints.dtypes import torch_dtype
from hybridize.checkpoints.files import CONFIG, read_json_object, refuse_pointer, sha256_of
from hybridize.checkpoints.finite import bytes_are_finite
from hybridize.checkpoints.header import TensorLocation
from hybridize.checkpoints.other_directories import describe
from hybridize.checkpoints.weight_files import LocalFiles, find_tensors
from hybridize.errors import InputError

if TYPE_CHECKING:
    import torch

_MAX_READ = 1 << 30  # bytes per call; Linux reads at most 2 GiB


class CheckpointReader:
    """A checkpoint directory, open for reading.

    Tensor data is read into new memory and not mapped, because the pages of a mapped file count
    as memory of this process until the file is closed, even after its tensors are deleted.

    Args:
        directory: the checkpoint.
        allow_nonfinite: return tensors that have NaN or infinity in them.

    Attributes:
        directory: as given.
        allow_nonfinite: as given.
        config: the parsed config.json.
        files: the safetensors files.

    Raises:
        InputError: the directory is not a checkpoint, its weights are pickled, or its files
            contradict each other.
    """

    def __init__(self, directory: str | Path, *, allow_nonfinite: bool = False) -> None:
        self.directory = Path(directory)
        self.allow_nonfinite = allow_nonfinite
        if not os.path.exists(self.directory):  # also False for names that no file can have
            raise InputError(f"{directory}: no such directory")
        if not self.directory.is_dir():
            raise InputError(f"{directory}: not a directory; a checkpoint is a directory")
        config = self.directory / CONFIG
        if not config.exists():
            raise InputError(f"{config}: missing; {describe(self.directory)}")
        self.config: dict[str, Any] = read_json_object(config)
        for path in copied_files(self.directory):
            refuse_pointer(path)
        self.files, self._locations = find_tensors(LocalFiles(self.directory), self.config)
        self._open: dict[Path, int] = {}
        self._hashes: Future[dict[str, str]] | None = None
        self._closed = Event()

    @property
    def names(self) -> list[str]:
        """The names of all tensors, by file and by offset in the file."""
        return list(self._locations)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._locations[name].shape

    def dtype(self, name: str) -> str:
        """Return torch's name of a tensor's dtype, such as ``"bfloat16"``."""
        return self._locations[name].dtype

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor."""
        return self._locations[name].nbytes

    def get(self, name: str, rows: slice | None = None) -> "torch.Tensor":
        """Read a tensor, or some of its rows.

        Args:
            name: the tensor.
            rows: a range of the first dimension, with a start and a stop; all if None.

        Raises:
            InputError: it has NaN or infinity in it, or its file has become shorter.
        """
        import torch

        data, location = self.get_bytes(name, rows), self._part(name, rows)
        if not self.allow_nonfinite and not bytes_are_finite(data, location.dtype):
            raise InputError(
                f"{location.file}: tensor {name!r} has NaN or infinity in it; repair the "
                "checkpoint, or accept it with `allow_nonfinite`"
            )
        dtype = torch_dtype(location.dtype)
        if location.nbytes == 0:  # torch cannot view an empty numpy array as another dtype
            return torch.empty(location.shape, dtype=dtype)
        return torch.from_numpy(data).view(dtype).reshape(location.shape)

    def get_bytes(
        self, name: str, rows: slice | None = None
    ) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """Read the bytes of a tensor, or of some rows, without checking for NaN and infinity.

        Raises:
            InputError: its file has become shorter.
        """
        location = self._part(name, rows)
        data = empty_bytes(location.nbytes)
        self._read_into(data.data, location)
        return data

    def rename(self, names: Mapping[str, str]) -> None:
        """Read tensors under other names from now on.

        Args:
            names: the new names by the old ones.
        """
        self._locations = {
            names.get(name, name): location for name, location in self._locations.items()
        }

    def hash_in_background(self) -> None:
        """Start to hash the files, so that `sha256` has less to wait for.

        Hashing stops at the end of the ``with`` block. Otherwise a failed run would keep on
        reading a large checkpoint, because the interpreter waits for its threads at exit.
        """
        if self._hashes is None:
            pool = ThreadPoolExecutor(1, "sha256")
            self._hashes = pool.submit(
                lambda: {file.name: sha256_of(file, self._closed) for file in self.files}
            )
            pool.shutdown(wait=False)

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of every safetensors file by its name."""
        self.hash_in_background()
        assert self._hashes is not None
        return self._hashes.result()

    def _part(self, name: str, rows: slice | None) -> TensorLocation:
        """Return where some rows of a tensor are. They are contiguous in the file."""
        location = self._locations[name]
        if rows is None:
            return location
        per_row = location.nbytes // max(1, location.shape[0])
        count = rows.stop - rows.start
        return replace(
            location,
            shape=(count, *location.shape[1:]),
            offset=location.offset + rows.start * per_row,
            nbytes=count * per_row,
        )

    def _read_into(self, buffer: memoryview, location: TensorLocation) -> None:
        if location.file not in self._open:
            self._close()  # one open file is enough, because tensors are mostly read in order
            self._open[location.file] = os.open(location.file, os.O_RDONLY)
        descriptor, done = self._open[location.file], 0
        while done < len(buffer):
            part = buffer[done : done + _MAX_READ]
            count = os.preadv(descriptor, [part], location.offset + done)
            if count == 0:
                raise InputError(f"{location.file}: has become shorter while it was read")
            done += count

    def _close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._close()
