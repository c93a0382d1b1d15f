"""Pack documents into sequences of one length."""

import os
import uuid
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hybridize.errors import InputError
from hybridize.file_names import utf8_path
from hybridize.output_files import unfinished


@dataclass(frozen=True)
class PackedDataset:
    """Token sequences of one length. Each contains one or more documents, or parts of documents.

    Attributes:
        ids: ``(sequences, length)`` int32, the tokens.
        seq_idx: ``(sequences, length)`` int32, the index of each token's document within its
            sequence, from 0.
    """

    ids: torch.Tensor
    seq_idx: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens in all sequences."""
        return self.ids.numel()

    def sequences(self, indices: torch.Tensor | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``ids`` and ``seq_idx`` of some sequences, ``(indices, length)`` int64 each."""
        chosen = torch.as_tensor(indices)
        return self.ids[chosen].long(), self.seq_idx[chosen].long()

    def first(self, tokens: int) -> "PackedDataset":
        """Return the first sequences, with at least this many tokens if there are so many."""
        count = -(-tokens // self.length)
        return PackedDataset(self.ids[:count], self.seq_idx[:count])

    def split(self, held_out: int) -> tuple["PackedDataset", "PackedDataset"]:
        """Return two datasets: all sequences but the last ``held_out``, and the last ``held_out``.

        Raises:
            ValueError: ``held_out`` is negative or larger than the dataset.
        """
        if not 0 <= held_out <= len(self):
            raise ValueError(f"{held_out} of {len(self)} sequences cannot be held out")
        boundary = len(self) - held_out
        return (
            PackedDataset(self.ids[:boundary], self.seq_idx[:boundary]),
            PackedDataset(self.ids[boundary:], self.seq_idx[boundary:]),
        )


def pack(
    documents: Iterable[Sequence[int]], length: int, tokens: int | None = None
) -> PackedDataset:
    """Concatenate documents and cut the result into sequences.

    A document that does not fit into its sequence continues in the next one. Tokens that do not
    fill a last sequence are dropped.

    Args:
        documents: the token ids of each document.
        length: tokens per sequence.
        tokens: maximum number of tokens, rounded down to whole sequences; None for no limit.
    """
    limit = None if tokens is None else tokens // length * length
    ids, starts = array("i"), array("q")
    for document in documents:
        if limit is not None and len(ids) >= limit:
            break
        if document:
            starts.append(len(ids))
            ids.extend(document)
    count = len(ids) // length * length
    if limit is not None:
        count = min(count, limit)
    flat = torch.tensor(ids[:count], dtype=torch.int32).view(-1, length)
    is_start = torch.zeros(count, dtype=torch.int32)
    offsets = torch.tensor(starts, dtype=torch.int64)
    is_start[offsets[offsets < count]] = 1
    is_start = is_start.view(-1, length)
    if count:
        is_start[:, 0] = 0  # the first document of a sequence has index 0
    return PackedDataset(flat, is_start.cumsum(1, dtype=torch.int32))


def save_packed_dataset(dataset: PackedDataset, path: Path) -> None:
    """Write a dataset to a safetensors file. The file appears only when it is complete."""
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    unfinished.add(partial)
    try:
        save_file({"ids": dataset.ids, "seq_idx": dataset.seq_idx.contiguous()}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        unfinished.discard(partial)


def read_packed_dataset(path: Path, vocab_size: int) -> PackedDataset:
    """Read a dataset that `save_packed_dataset` wrote.

    Args:
        path: the file.
        vocab_size: number of token ids.

    Raises:
        InputError: the file was not written by `save_packed_dataset`, or is damaged.
    """
    try:
        with utf8_path(path) as name, safe_open(name, "pt") as file:
            dataset = PackedDataset(file.get_tensor("ids"), file.get_tensor("seq_idx"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a packed dataset: {error}; delete it") from error
    shapes = {tuple(dataset.ids.shape), tuple(dataset.seq_idx.shape)}
    dtypes = {dataset.ids.dtype, dataset.seq_idx.dtype}
    if len(shapes) > 1 or dataset.ids.ndim != 2 or dtypes != {torch.int32}:
        raise InputError(f"{path}: not a packed dataset; delete it")
    increments = dataset.seq_idx.diff(dim=1, prepend=dataset.seq_idx.new_zeros(len(dataset), 1))
    ids_exist = ((dataset.ids >= 0) & (dataset.ids < vocab_size)).all()
    if not ids_exist or not ((increments == 0) | (increments == 1)).all():
        raise InputError(f"{path}: the packed dataset is damaged; delete it")
    return dataset
