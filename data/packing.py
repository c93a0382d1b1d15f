"""Pack documents into sequences of one length."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from typing_extensions import override


class SequenceStore(Protocol):
    """Where the sequences of a `PackedDataset` are: in memory, or in files.

    Attributes:
        length: tokens per sequence.
    """

    length: int

    def __len__(self) -> int:
        """Return the number of sequences."""

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and document numbers of some sequences, ``(indices, length)`` int64 each."""

    def take_mask(self, indices: torch.Tensor) -> torch.Tensor | None:
        """Return which tokens are learned, ``(indices, length)`` bool; None if all are."""
        return None


class PackedDataset:
    """Token sequences of one length. Each contains one or more documents, or parts of documents.

    It is a view: the sequences are in memory, or in files that are read where they are used.

    Args:
        ids: ``(sequences, length)`` int32, the tokens.
        seq_idx: ``(sequences, length)`` int32, the index of each token's document within its
            sequence, from 0.
        mask: ``(sequences, length)`` bool, which tokens are learned; None for all.
    """

    def __init__(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        self._store: SequenceStore = _InMemory(ids, seq_idx, mask)
        self._range = range(len(ids))

    @classmethod
    def of(cls, store: SequenceStore, chosen: range | None = None) -> Self:
        """Return a view of the sequences of a store; of all, if ``chosen`` is None."""
        dataset = cls.__new__(cls)
        dataset._store = store
        dataset._range = range(len(store)) if chosen is None else chosen
        return dataset

    @classmethod
    def joined(cls, datasets: Sequence["PackedDataset"]) -> Self:
        """Return a view of all sequences of some datasets of the same length, in order."""
        return cls.of(_Joined(datasets))

    def __len__(self) -> int:
        return len(self._range)

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self._store.length

    @property
    def tokens(self) -> int:
        """Tokens in all sequences."""
        return len(self) * self.length

    @property
    def ids(self) -> torch.Tensor:
        """All tokens, ``(sequences, length)`` int32. This reads them into memory."""
        return self._all(0)

    @property
    def seq_idx(self) -> torch.Tensor:
        """All document numbers, ``(sequences, length)`` int32. This reads them into memory."""
        return self._all(1)

    def _all(self, field: int) -> torch.Tensor:
        if isinstance(self._store, _InMemory):
            return self._store.tensors[field][self._range.start : self._range.stop]
        return self.sequences(range(len(self)))[field].int()

    def sequences(self, indices: torch.Tensor | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``ids`` and ``seq_idx`` of some sequences, ``(indices, length)`` int64 each."""
        return self._store.take(self._in_store(indices))

    def mask(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor | None:
        """Return which tokens of some sequences are learned, ``(indices, length)`` bool.

        The loss of the prediction of a token counts if the token is learned. None: all tokens are
        learned.
        """
        return self._store.take_mask(self._in_store(indices))

    def _in_store(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"there are {len(self)} sequences, and {chosen.tolist()} were asked")
        return chosen + self._range.start

    def first(self, tokens: int) -> "PackedDataset":
        """Return the first sequences, with at least this many tokens if there are so many."""
        return self.of(self._store, self._range[: -(-tokens // self.length)])

    def split(self, held_out: int) -> tuple["PackedDataset", "PackedDataset"]:
        """Return two datasets: all sequences but the last ``held_out``, and the last ``held_out``.

        Raises:
            ValueError: ``held_out`` is negative or larger than the dataset.
        """
        if not 0 <= held_out <= len(self):
            raise ValueError(f"{held_out} of {len(self)} sequences cannot be held out")
        boundary = len(self) - held_out
        return (
            self.of(self._store, self._range[:boundary]),
            self.of(self._store, self._range[boundary:]),
        )


class _InMemory(SequenceStore):
    def __init__(self, ids: torch.Tensor, seq_idx: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.tensors, self._mask = (ids, seq_idx), mask
        self.length = ids.shape[1]

    @override
    def __len__(self) -> int:
        return len(self.tensors[0])

    @override
    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, seq_idx = self.tensors
        return ids[indices].long(), seq_idx[indices].long()

    @override
    def take_mask(self, indices: torch.Tensor) -> torch.Tensor | None:
        return None if self._mask is None else self._mask[indices]


class _Joined(SequenceStore):
    def __init__(self, datasets: Sequence[PackedDataset]) -> None:
        self._datasets = datasets
        self._ends = torch.tensor([len(dataset) for dataset in datasets]).cumsum(0)
        self.length = datasets[0].length

    @override
    def __len__(self) -> int:
        return int(self._ends[-1])

    @override
    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(indices), self.length)
        ids, seq_idx = (torch.empty(shape, dtype=torch.int64) for _ in range(2))
        for dataset, mine, own in self._parts(indices):
            ids[mine], seq_idx[mine] = dataset.sequences(own)
        return ids, seq_idx

    @override
    def take_mask(self, indices: torch.Tensor) -> torch.Tensor | None:
        result, found = torch.ones((len(indices), self.length), dtype=torch.bool), False
        for dataset, mine, own in self._parts(indices):
            mask = dataset.mask(own)
            if mask is not None:
                result[mine], found = mask, True
        return result if found else None

    def _parts(
        self, indices: torch.Tensor
    ) -> Iterator[tuple[PackedDataset, torch.Tensor, torch.Tensor]]:
        """Yield datasets, which of the sequences are theirs, and the indices in the dataset."""
        numbers = torch.bucketize(indices, self._ends, right=True)
        for number in numbers.unique().tolist():
            dataset, mine = self._datasets[number], numbers == number
            yield dataset, mine, indices[mine] - (int(self._ends[number]) - len(dataset))


def hide(ids: np.ndarray, mask: Sequence[bool] | np.ndarray | None) -> np.ndarray:
    """Return token ids with the complement ``~id`` in place of those that are not learned.

    So the mask goes with the tokens through packing and mixing. `reveal` undoes it.

    Args:
        ids: ``(tokens,)`` int32.
        mask: ``(tokens,)``, True for tokens that are learned; None if all are.
    """
    return ids if mask is None else np.where(np.asarray(mask, dtype=bool), ids, ~ids)


def reveal(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids and the mask that `hide` was given, which is all True if none was."""
    mask = ids >= 0
    return np.where(mask, ids, ~ids), mask


class Packed(NamedTuple):
    """One sequence.

    Attributes:
        ids: ``(length,)`` int32; tokens that are not learned are complements, see `hide`.
        starts: the positions at which a document starts, without position 0, int32, ascending.
    """

    ids: np.ndarray
    starts: np.ndarray


class SequencePacker:
    """Concatenates documents and cuts the result into sequences.

    A document that does not fit into its sequence continues in the next one.

    Args:
        length: tokens per sequence.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._pending: deque[tuple[Any, np.ndarray]] = deque()
        self._used = 0  # tokens of the first document that are in a sequence already
        self.available = 0

    def add(self, document: Sequence[int] | np.ndarray, label: Any = None) -> None:
        """Append the token ids of a document; `first` returns its label."""
        ids = np.asarray(document, dtype=np.int32)
        if self._pending and self._used == len(self._pending[0][1]):
            self._pending.popleft()
            self._used = 0
        self._pending.append((label, ids))
        self.available += len(ids)

    @property
    def first(self) -> tuple[Any, int] | None:
        """The label of the first document with unused tokens, and how many of them are used.

        If all tokens are used, it is the last document. None before the first one.
        """
        return (self._pending[0][0], self._used) if self._pending else None

    def is_full(self) -> bool:
        """Return whether `take` has the tokens for a sequence."""
        return self.available >= self._length

    def take(self) -> Packed:
        """Return the next sequence. There must be the tokens for it, see `is_full`."""
        parts, starts, filled = [], [], 0
        while filled < self._length:
            document = self._pending[0][1]
            part = document[self._used : self._used + self._length - filled]
            if self._used == 0 and len(part) and filled:
                starts.append(filled)
            parts.append(part)
            filled += len(part)
            self._used += len(part)
            if self._used == len(document) and len(self._pending) > 1:
                self._pending.popleft()
                self._used = 0
        self.available -= self._length
        return Packed(np.concatenate(parts), np.array(starts, dtype=np.int32))

    def rest(self) -> list[np.ndarray]:
        """Return the documents, or parts of them, that are not in any sequence yet."""
        documents = [ids for _, ids in self._pending]
        return [documents[0][self._used :], *documents[1:]] if documents else []


def pack(
    documents: Iterable[Sequence[int]], length: int, tokens: int | None = None
) -> PackedDataset:
    """Pack documents into sequences in memory.

    Tokens that do not fill a last sequence are dropped.

    Args:
        documents: the token ids of each document.
        length: tokens per sequence.
        tokens: maximum number of tokens, rounded down to whole sequences; None for no limit.
    """
    packer, sequences = SequencePacker(length), list[Packed]()
    limit = None if tokens is None else tokens // length
    for document in documents:
        if len(sequences) == limit:
            break
        packer.add(document)
        while packer.is_full() and len(sequences) != limit:
            sequences.append(packer.take())
    return dataset_of(sequences, length)


def dataset_of(sequences: Sequence[Packed], length: int) -> PackedDataset:
    """Return sequences as a dataset in memory."""
    ids = np.empty((len(sequences), length), dtype=np.int32)
    mask = np.empty((len(sequences), length), dtype=bool)
    is_start = np.zeros((len(sequences), length), dtype=np.int32)
    for row, sequence in enumerate(sequences):
        ids[row], mask[row] = reveal(sequence.ids)
        is_start[row, sequence.starts] = 1
    seq_idx = is_start.cumsum(1, dtype=np.int32)
    learned = None if mask.all() else torch.from_numpy(mask)
    return PackedDataset(torch.from_numpy(ids), torch.from_numpy(seq_idx), learned)
