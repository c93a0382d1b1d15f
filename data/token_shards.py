"""Token sequences in a directory: files of bounded size, and an index.

The directory of a text has

- ``training-00000.safetensors``, … and ``validation-00000.safetensors``, …: the *shards*. Each has
  the tensors ``ids`` ``(sequences, length)``, uint16 if the vocabulary has at most 65,536 tokens
  and int32 otherwise, ``starts`` int32, the positions in their sequence at which documents start,
  and ``first_start`` ``(sequences + 1,)`` int32: those of sequence i are
  ``starts[first_start[i] : first_start[i + 1]]``. If some tokens are not learned, ``mask``
  ``(sequences, length)`` bool is True for the others.
- ``index.json``: the shards in order, whether the text is complete, and where its sources were
  when the last shard was written. A shard that is not in the index does not count.

The tensors of a shard are named in the index (``fields``), so that later versions can add one.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from typing_extensions import override

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.checkpoints.files import read_json_object
from hybridize.console import console
from hybridize.data.packing import Packed, PackedDataset, SequenceStore, reveal
from hybridize.errors import HybridizeError, InputError
from hybridize.file_names import utf8_path
from hybridize.output_files import write_atomically

TRAINING, VALIDATION = "training", "validation"

_PARTS = (VALIDATION, TRAINING)
_FIELDS = ("ids", "first_start", "starts")
_MASK = "mask"
_FORMAT = 1
_TOKENS_PER_SHARD = 1 << 20
_SEQUENCES_PER_SHARD = 1 << 12
"""Both bound the memory of the writer, and the work that a killed run loses."""

_MAX_UINT16 = 1 << 16
_MAX_OPEN = 1000  # mapped files; systems limit their number


@dataclass
class Index:
    """The content of ``index.json``.

    Attributes:
        key: hash of everything that the text depends on.
        length: tokens per sequence.
        vocab_size: number of token ids.
        complete: whether all shards are written.
        shards: the number of sequences in every shard of each part.
        state: where the sources were when the last shard was written, as JSON values.
        masked: whether the shards say which tokens are learned; otherwise all are.
    """

    key: str
    length: int
    vocab_size: int
    complete: bool = False
    shards: dict[str, list[int]] = field(default_factory=lambda: {part: [] for part in _PARTS})
    state: Any = None
    masked: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the tensors of a shard."""
        return (*_FIELDS, _MASK) if self.masked else _FIELDS

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the token ids."""
        return torch.uint16 if self.vocab_size <= _MAX_UINT16 else torch.int32

    def to_json(self) -> dict[str, Any]:
        """Return the index as a JSON object, with a checksum."""
        values = {
            "format": _FORMAT,
            "key": self.key,
            "length": self.length,
            "vocab_size": self.vocab_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "fields": list(self.fields),
            "complete": self.complete,
            "shards": self.shards,
            "state": self.state,
        }
        text = json.dumps(values, sort_keys=True)
        return values | {"check": f"{zlib.crc32(text.encode()):08x}"}


def index_path(directory: Path) -> Path:
    """Return the path of a directory's index."""
    return directory / "index.json"


def read_index(directory: Path, key: str, vocab_size: int) -> Index:
    """Read the index of a directory.

    Args:
        directory: the directory.
        key: hash of everything that the text depends on.
        vocab_size: number of token ids.

    Raises:
        InputError: the index is damaged, or belongs to another text.
    """
    path = index_path(directory)
    try:
        values = read_json_object(path)
        index = Index(
            key=values["key"],
            length=values["length"],
            vocab_size=values["vocab_size"],
            complete=values["complete"],
            shards=values["shards"],
            state=values["state"],
            masked=_MASK in values["fields"],
        )
        _check_index(index)
        if index.to_json() != values:
            raise ValueError("unexpected fields or types")
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not the index of a packed text; {_REMEDY}") from error
    if (index.key, index.vocab_size) != (key, vocab_size):
        raise InputError(f"{path}: belongs to another text or vocabulary; {_REMEDY}")
    return index


_REMEDY = "delete its directory, and the text is packed again"


def _check_index(index: Index) -> None:
    """Check the types and ranges of an index.

    Raises:
        ValueError: a value is wrong.
    """
    counts = [count for part in _PARTS for count in index.shards[part]]
    numbers = [index.length, index.vocab_size, *counts]
    if any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError("a size is not a positive whole number")
    if type(index.complete) is not bool or set(index.shards) != set(_PARTS):
        raise ValueError("wrong fields")
    if not isinstance(index.key, str):
        raise ValueError("the key is not a text")


def shard_path(directory: Path, part: str, number: int) -> Path:
    """Return the path of a shard."""
    return directory / f"{part}-{number:05}.safetensors"


class ShardWriter:
    """Writes sequences into shards, and the index after each of them.

    Args:
        directory: an existing directory. What its index names is kept.
        index: the index to continue; its shards must be intact, see `check_shards`.
    """

    def __init__(self, directory: Path, index: Index) -> None:
        self._directory, self._index = directory, index
        self._per_shard = max(1, min(_SEQUENCES_PER_SHARD, _TOKENS_PER_SHARD // index.length))
        self._sequences: list[Packed] = []

    def add(self, sequence: Packed) -> bool:
        """Add a sequence; return whether there are enough of them for a shard."""
        self._sequences.append(sequence)
        return len(self._sequences) >= self._per_shard

    @property
    def _numpy_dtype(self) -> type:
        return np.uint16 if self._index.dtype == torch.uint16 else np.int32

    def write(self, part: str, state: Any, *, complete: bool = False) -> None:
        """Write the sequences since the last call as one shard, then the index.

        Args:
            part: ``"training"`` or ``"validation"``.
            state: where the sources are now, as JSON values.
            complete: whether this was the last shard.

        Raises:
            HybridizeError: a file cannot be written.
        """
        if self._sequences:
            number = len(self._index.shards[part])
            ids, mask = reveal(np.stack([s.ids for s in self._sequences]))
            assert self._index.masked or mask.all()
            tensors = {
                "ids": torch.from_numpy(ids.astype(self._numpy_dtype)),
                "first_start": torch.tensor([0] + [len(s.starts) for s in self._sequences])
                .cumsum(0)
                .int(),
                "starts": torch.from_numpy(np.concatenate([s.starts for s in self._sequences])),
            }
            if self._index.masked:
                tensors[_MASK] = torch.from_numpy(mask)
            about = {"key": self._index.key, "part": part, "number": number}
            save_checked(shard_path(self._directory, part, number), tensors, about)
            self._index.shards[part].append(len(self._sequences))
            self._sequences = []
        self._index.state, self._index.complete = state, complete
        path = index_path(self._directory)
        try:
            write_atomically(path, json.dumps(self._index.to_json(), indent=1) + "\n")
        except OSError as error:
            raise HybridizeError(f"{path}: cannot be written: {error}") from error


def check_shards(directory: Path, index: Index) -> None:
    """Read all shards of an index once, and check their content.

    Raises:
        InputError: a shard is missing or damaged, or does not belong to the index.
    """
    shards = list(_shards(directory, index))
    tokens = sum(count for *_, count in shards) * index.length
    with console.progress("checking the packed text", tokens, "tokens") as progress:
        for path, part, number, count in shards:
            try:
                tensors, about = load_checked(path)
                if about != {"key": index.key, "part": part, "number": number}:
                    raise ValueError("it belongs to another text")
                _check_tensors(tensors, index, count)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: the packed text is damaged: {error}; {_REMEDY}") from (
                    error
                )
            progress.advance(count * index.length)


def _shards(directory: Path, index: Index) -> Iterator[tuple[Path, str, int, int]]:
    """Yield the path, the part, the number, and the number of sequences of every shard."""
    for part in _PARTS:
        for number, count in enumerate(index.shards[part]):
            yield shard_path(directory, part, number), part, number, count


def _check_tensors(tensors: dict[str, torch.Tensor], index: Index, count: int) -> None:
    """Check that a shard has valid sequences.

    Raises:
        ValueError: it has not.
    """
    if set(tensors) != set(index.fields):
        raise ValueError(f"its tensors are {', '.join(sorted(tensors))}")
    ids, first_start, starts = (tensors[name] for name in _FIELDS)
    if (ids.dtype, first_start.dtype, starts.dtype) != (index.dtype, torch.int32, torch.int32):
        raise ValueError("a tensor has the wrong dtype")
    if ids.shape != (count, index.length) or first_start.shape != (count + 1,) or starts.ndim != 1:
        raise ValueError("a tensor has the wrong shape")
    mask = tensors.get(_MASK)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != ids.shape):
        raise ValueError("its mask has the wrong dtype or shape")
    ids = ids.to(torch.int32)
    if ids.min() < 0 or ids.max() >= index.vocab_size:
        raise ValueError(f"a token id is not below {index.vocab_size}")
    counts = first_start.diff()
    if first_start[0] != 0 or first_start[-1] != len(starts) or (counts < 0).any():
        raise ValueError("its document starts are inconsistent")
    rows = torch.repeat_interleave(torch.arange(count), counts)
    ascending = (starts.diff() > 0) | (rows.diff() > 0)
    if not ((starts > 0) & (starts < index.length)).all() or not ascending.all():
        raise ValueError("its document starts are inconsistent")


class ShardStore(SequenceStore):
    """The sequences of one part, in files that are mapped into memory.

    Args:
        directory: the directory.
        index: its index; the shards must be intact, see `check_shards`.
        part: ``"training"`` or ``"validation"``.
    """

    def __init__(self, directory: Path, index: Index, part: str) -> None:
        self._directory, self._part = directory, part
        self.length, self._masked = index.length, index.masked
        self._ends = np.cumsum([0, *index.shards[part]])
        self._open: dict[int, Any] = {}

    @override
    def __len__(self) -> int:
        return int(self._ends[-1])

    @override
    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.empty((len(indices), self.length), dtype=torch.int64)
        is_start = torch.zeros((len(indices), self.length), dtype=torch.int64)
        for file, target, begin, end in self._runs(indices.numpy()):
            ids[target] = file.get_slice("ids")[begin:end].to(torch.int64)
            first = file.get_slice("first_start")[begin : end + 1].long()
            starts = file.get_slice("starts")[int(first[0]) : int(first[-1])].long()
            owner = torch.repeat_interleave(torch.arange(end - begin), first.diff())
            is_start[target][owner, starts] = 1
        return ids, is_start.cumsum(1)

    @override
    def take_mask(self, indices: torch.Tensor) -> torch.Tensor | None:
        if not self._masked:
            return None
        mask = torch.empty((len(indices), self.length), dtype=torch.bool)
        for file, target, begin, end in self._runs(indices.numpy()):
            mask[target] = file.get_slice(_MASK)[begin:end]
        return mask

    def _runs(self, chosen: np.ndarray) -> Iterator[tuple[Any, slice, int, int]]:
        """Yield files, where their sequences are in the result, and where they are in the file.

        Neighbors in one shard are read at once.
        """
        numbers = np.searchsorted(self._ends, chosen, side="right") - 1
        breaks = np.flatnonzero((np.diff(chosen) != 1) | (np.diff(numbers) != 0)) + 1
        for rows in np.split(np.arange(len(chosen)), breaks):
            if not len(rows):
                continue
            number = int(numbers[rows[0]])
            begin = int(chosen[rows[0]] - self._ends[number])
            target = slice(int(rows[0]), int(rows[-1]) + 1)
            yield self._file(number), target, begin, begin + len(rows)

    def _file(self, number: int) -> Any:
        if number not in self._open:
            if len(self._open) == _MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            path = shard_path(self._directory, self._part, number)
            with utf8_path(path) as name:  # stays mapped
                self._open[number] = safe_open(name, "pt").__enter__()
        return self._open[number]


def open_part(directory: Path, index: Index, part: str) -> PackedDataset:
    """Return a view of one part of a packed text, see `ShardStore`."""
    return PackedDataset.of(ShardStore(directory, index, part))
