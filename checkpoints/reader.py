"""Reading a checkpoint directory one tensor at a time: safetensors only, any number of shards."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import torch

from hybridize.checkpoints.files import CONFIG, INDEX, WEIGHTS, read_json_object, sha256_of
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.header import Place, read_header
from hybridize.checkpoints.memory import empty_bytes
from hybridize.errors import InputError

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_AT_ONCE = 1 << 30  # Linux reads at most 2 GiB a call


class CheckpointReader:
    """A checkpoint directory, open for reading.

    Tensor data is read into fresh memory, not mapped: the pages of a mapped file would count as
    this process's memory for as long as it is open, whatever has been let go.

    Args:
        directory: the checkpoint.
        allow_nonfinite: hand out tensors with NaN or infinity in them.

    Attributes:
        directory: as given.
        allow_nonfinite: as given.
        config: the parsed config.json.
        files: the safetensors files.

    Raises:
        InputError: no checkpoint, one that is pickled, or one whose parts contradict each other.
    """

    def __init__(self, directory: str | Path, *, allow_nonfinite: bool = False) -> None:
        self.directory = Path(directory)
        self.allow_nonfinite = allow_nonfinite
        if not os.path.exists(self.directory):  # False, too, for names that no file can have
            raise InputError(f"{directory}: no such directory")
        if not self.directory.is_dir():
            raise InputError(f"{directory}: not a directory; a checkpoint is one")
        config = self.directory / CONFIG
        if not config.exists():
            raise InputError(f"{config}: missing; is this a Hugging Face checkpoint?")
        self.config: dict[str, Any] = read_json_object(config)
        self.files, self._places = _find_tensors(self.directory)
        self._open: dict[Path, int] = {}
        self._hashes: Future[dict[str, str]] | None = None
        self._left = Event()

    @property
    def names(self) -> list[str]:
        """All tensors, in the order of files and of bytes in them."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype."""
        return self._places[name].dtype

    def nbytes(self, name: str) -> int:
        """Return how many bytes a tensor takes."""
        return self._places[name].nbytes

    def get(self, name: str) -> torch.Tensor:
        """Read a tensor.

        Raises:
            InputError: it holds NaN or infinity, or its file ended early.
        """
        place = self._places[name]
        data = empty_bytes(place.nbytes)
        self._read_into(data.numpy().data, place)
        tensor = data.view(place.dtype).reshape(place.shape)
        if not self.allow_nonfinite and not is_finite(tensor):
            raise InputError(
                f"{place.file}: tensor {name!r} has NaN or infinity in it; "
                "--allow-nonfinite goes on all the same"
            )
        return tensor

    def hash_in_background(self) -> None:
        """Begin to hash the files, for `sha256` to find the work done.

        Ends with the ``with`` block: the interpreter does not exit before its threads, and a run
        that failed should not go on reading a large checkpoint.
        """
        if self._hashes is None:
            pool = ThreadPoolExecutor(1, "sha256")
            self._hashes = pool.submit(
                lambda: {file.name: sha256_of(file, self._left) for file in self.files}
            )
            pool.shutdown(wait=False)

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of every safetensors file by its name."""
        self.hash_in_background()
        assert self._hashes is not None
        return self._hashes.result()

    def _read_into(self, buffer: memoryview, place: Place) -> None:
        if place.file not in self._open:
            self._close()  # one file at a time is enough: tensors come mostly in order
            self._open[place.file] = os.open(place.file, os.O_RDONLY)
        descriptor, done = self._open[place.file], 0
        while done < len(buffer):
            part = buffer[done : done + _MOST_AT_ONCE]
            count = os.preadv(descriptor, [part], place.start + done)
            if count == 0:
                raise InputError(f"{place.file}: ended while it was being read")
            done += count

    def _close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._close()


def _find_tensors(directory: Path) -> tuple[list[Path], dict[str, Place]]:
    index, single = directory / INDEX, directory / WEIGHTS
    if single.exists() and not index.exists():
        return [single], read_header(single)
    if not index.exists():
        pickled = next((p for pattern in _PICKLES for p in sorted(directory.glob(pattern))), None)
        if pickled is not None:
            raise InputError(
                f"{pickled}: pickled weights can run code and are never opened; where you trust "
                "them, save them anew with transformers' save_pretrained, as safetensors"
            )
        raise InputError(f"{directory}: no {WEIGHTS} and no {INDEX}")
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map")
    return _read_shards(directory, index, weight_map)


def _read_shards(
    directory: Path, index: Path, weight_map: dict[str, Any]
) -> tuple[list[Path], dict[str, Place]]:
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise InputError(
                f"{index}: tensor {tensor!r} is in {name!r}; shards lie beside the index"
            )
        if not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name!r} is not a safetensors file")
    files = [directory / name for name in sorted(set(weight_map.values()))]
    places: dict[str, Place] = {}
    for file in files:
        if not os.path.exists(file):  # False, too, for names that no file can have
            raise InputError(f"{index}: names {file.name!r}, which is missing")
        for tensor, place in read_header(file).items():
            if weight_map.get(tensor) != file.name:
                where = "another shard" if tensor in weight_map else "no shard"
                raise InputError(
                    f"{file}: holds tensor {tensor!r}, which {INDEX} places in {where}"
                )
            places[tensor] = place
    missing = sorted(set(weight_map) - set(places))
    if missing:
        raise InputError(
            f"{index}: places tensor {missing[0]!r} in {weight_map[missing[0]]!r}, "
            "which does not hold it"
        )
    return files, places
