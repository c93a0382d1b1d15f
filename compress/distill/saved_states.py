"""The saved states of a distillation on disk, from which an interrupted run continues.

A state is a directory. Every process writes the rows that it has, in safetensors files with torch's
distributed checkpoint (`torch.distributed.checkpoint`), so no process needs the memory for a whole
model, and the run can continue with another number of processes. ``progress.json`` has everything
that is not a tensor, and the checksums of the files. A directory gets its name when it is complete.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from hybridize.checkpoints.files import sha256_of, sync
from hybridize.compress.distill.distributed import Ranks
from hybridize.compress.distill.trainer_state import TrainerState
from hybridize.errors import HybridizeError, InputError, first_line
from hybridize.file_names import utf8_path
from hybridize.interrupts import uninterrupted

_PROGRESS = "progress.json"
_NAME = re.compile(r"state-(\d+)-(\d+)")
_KEPT = 2  # states
_BYTES_PER_FILE = 1 << 25
"""A file is put together in memory before it is written."""

Tensors = dict[str, torch.Tensor]


class SavedStates:
    """The states of a run.

    Args:
        directory: the run's working directory.
        ranks: the processes of the run. All must call every method.
    """

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self._directory, self._ranks = directory, ranks

    def newest(self) -> Path | None:
        """Return the directory of the newest state, or None if nothing was saved."""
        return next(iter(self._all()), None)

    def save(self, state: TrainerState, tensors: Tensors) -> None:
        """Write a state, and delete all but the last two.

        Raises:
            HybridizeError: it cannot be written.
        """
        path = self._directory / f"state-{state.stage_index}-{state.step}"
        partial = path.with_name(f"{path.name}.partial")
        try:
            with uninterrupted():
                self._write(partial, state, tensors)
                if self._ranks.first:
                    _delete(path)  # written before, and then continued from an earlier state
                    partial.rename(path)
                    sync(self._directory)
                    for old in self._all()[_KEPT:]:
                        _delete(old)
                self._ranks.wait()
        except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
            raise HybridizeError(f"{path}: cannot be written: {_reason(error)}") from error

    def load_progress(self) -> TrainerState:
        """Return what `save` got in the newest state; a new one if nothing was saved.

        Raises:
            InputError: the state is damaged.
        """
        path = self.newest()
        if path is None:
            return TrainerState()
        with _damage_is_explained(path):
            contents = _read_progress(path / _PROGRESS)
            files = sorted(contents["files"].items())
            own = files[self._ranks.rank :: self._ranks.size]
            intact = all(sha256_of(path / name) == checksum for name, checksum in own)
            if not self._ranks.all_agree([intact])[0]:
                raise ValueError("a checksum is wrong")
            return TrainerState.from_json(contents["state"])

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return the shapes and dtypes of the tensors in the newest state, by name."""
        path = self.newest()
        if path is None:
            return {}
        with _damage_is_explained(path), utf8_path(path) as opened:
            found = _reader(opened).read_metadata().state_dict_metadata
            return {
                name: (each.size, each.properties.dtype)
                for name, each in found.items()
                if isinstance(each, TensorStorageMetadata)
            }

    def load(self, tensors: Tensors) -> None:
        """Copy tensors of the newest state into the given ones, which may be sharded.

        Args:
            tensors: by name; all must be in the state, see `layout`.

        Raises:
            InputError: the state is damaged.
        """
        path = self.newest()
        if path is None or not tensors:
            return
        with _damage_is_explained(path), _single_process_is_fine(), utf8_path(path) as opened:
            dcp.load(tensors, storage_reader=_reader(opened), no_dist=self._ranks.size == 1)

    def _all(self) -> list[Path]:
        """Return the directories of all complete states, the newest first."""
        found = []
        for path in self._directory.glob("state-*"):
            match = _NAME.fullmatch(path.name)
            if match and (path / _PROGRESS).exists():
                found.append(((int(match[1]), int(match[2])), path))
        return [path for _, path in sorted(found, reverse=True)]

    def _write(self, partial: Path, state: TrainerState, tensors: Tensors) -> None:
        if self._ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self._ranks.wait()
        writer = HuggingFaceStorageWriter(
            str(partial), fqn_to_index_mapping=_file_numbers(tensors), save_distributed=True
        )
        with _single_process_is_fine():
            dcp.save(tensors, storage_writer=writer, no_dist=self._ranks.size == 1)
        own = sorted(partial.glob(f"shard-{self._ranks.rank + 1:05d}-*"))
        checksums = self._ranks.gather({path.name: sha256_of(path) for path in own})
        if self._ranks.first:
            files = {name: value for part in checksums for name, value in part.items()}
            _write_progress(partial / _PROGRESS, {"state": asdict(state), "files": files})
            sync(partial)


def _write_progress(path: Path, contents: dict[str, Any]) -> None:
    text = json.dumps(contents, allow_nan=False)
    checked = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "contents": contents}
    path.write_text(json.dumps(checked), "utf-8")
    sync(path)


def _read_progress(path: Path) -> dict[str, Any]:
    """Return what `_write_progress` has written.

    Raises:
        ValueError: it has changed since.
    """
    checked = json.loads(path.read_text("utf-8"))
    contents: dict[str, Any] = checked["contents"]
    text = json.dumps(contents, allow_nan=False)
    if hashlib.sha256(text.encode()).hexdigest() != checked["sha256"]:
        raise ValueError(f"the checksum of {path.name} is wrong")
    return contents


def _reader(path: Path) -> HuggingFaceStorageReader:
    return HuggingFaceStorageReader(str(path))


def _file_numbers(tensors: Tensors) -> dict[str, int]:
    """Return the number of the file of each tensor, from 1, the same in all processes."""
    numbers, number, nbytes = {}, 1, 0
    for name, tensor in tensors.items():
        if nbytes and nbytes + tensor.nbytes > _BYTES_PER_FILE:
            number, nbytes = number + 1, 0
        nbytes += tensor.nbytes
        numbers[name] = number
    return numbers


def _delete(path: Path) -> None:
    (path / _PROGRESS).unlink(missing_ok=True)  # first, so that half of a state never counts
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _damage_is_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # torch raises a different type for every kind of damage
    except (Exception, CheckpointException) as error:
        raise InputError(
            f"{path}: cannot continue from this state: {_reason(error)}; `force=True` starts the "
            "run again"
        ) from error


def _reason(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return first_line(error)


@contextmanager
def _single_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
