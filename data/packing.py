"""Documents packed into rows of one length."""

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


@dataclass(frozen=True)
class PackedDataset:
    """Rows of tokens, each of which holds parts of one document or of several.

    Attributes:
        ids: ``(rows, length)`` int32, the tokens.
        seq_idx: ``(rows, length)`` int32, which of its row's documents a token belongs to, from 0.
    """

    ids: torch.Tensor
    seq_idx: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return self.ids.numel()

    def sequences(self, indices: torch.Tensor | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and document numbers of some rows, ``(rows, length)`` int64 each."""
        chosen = torch.as_tensor(indices)
        return self.ids[chosen].long(), self.seq_idx[chosen].long()

    def split(self, held_out: int) -> tuple["PackedDataset", "PackedDataset"]:
        """Return all rows but the last ``held_out``, and those.

        Raises:
            ValueError: there are fewer rows than that.
        """
        if not 0 <= held_out <= len(self):
            raise ValueError(f"{held_out} of {len(self)} rows cannot be held out")
        border = len(self) - held_out
        return (
            PackedDataset(self.ids[:border], self.seq_idx[:border]),
            PackedDataset(self.ids[border:], self.seq_idx[border:]),
        )


def pack(
    documents: Iterable[Sequence[int]], length: int, tokens: int | None = None
) -> PackedDataset:
    """Lay documents one after the other into rows.

    A document that does not fit goes on in the next row, which so begins in its middle, as all
    text does that a model meets beyond its context. What does not fill a last row is dropped.

    Args:
        documents: token numbers of each.
        length: tokens per row.
        tokens: stop after so many, rounded down to whole rows; take everything if None.
    """
    wanted = None if tokens is None else tokens // length * length
    ids, begins = array("i"), array("q")
    for document in documents:
        if wanted is not None and len(ids) >= wanted:
            break
        if document:
            begins.append(len(ids))
            ids.extend(document)
    count = (
        len(ids) // length * length if wanted is None else min(len(ids) // length * length, wanted)
    )
    flat = torch.tensor(ids[:count], dtype=torch.int32).view(-1, length)
    marks = torch.zeros(count, dtype=torch.int32)
    places = torch.tensor(begins, dtype=torch.int64)
    marks[places[places < count]] = 1
    marks = marks.view(-1, length)
    if count:
        marks[:, 0] = 0  # whatever a row begins with is its document 0
    return PackedDataset(flat, marks.cumsum(1, dtype=torch.int32))


def save_packed_dataset(dataset: PackedDataset, path: Path) -> None:
    """Write rows to a safetensors file, which appears when it is complete."""
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        save_file({"ids": dataset.ids, "seq_idx": dataset.seq_idx.contiguous()}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_packed_dataset(path: Path, vocabulary: int) -> PackedDataset:
    """Read rows that `save_packed_dataset` wrote.

    Args:
        path: the file.
        vocabulary: how many tokens there are.

    Raises:
        InputError: the file is none of its.
    """
    try:
        with safe_open(path, "pt") as file:
            dataset = PackedDataset(file.get_tensor("ids"), file.get_tensor("seq_idx"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not rows of tokens: {error}; delete it") from error
    shapes = {tuple(dataset.ids.shape), tuple(dataset.seq_idx.shape)}
    kinds = {dataset.ids.dtype, dataset.seq_idx.dtype}
    if len(shapes) > 1 or dataset.ids.ndim != 2 or kinds != {torch.int32}:
        raise InputError(f"{path}: not rows of tokens; delete it")
    steps = dataset.seq_idx.diff(dim=1, prepend=dataset.seq_idx.new_zeros(len(dataset), 1))
    known = ((dataset.ids >= 0) & (dataset.ids < vocabulary)).all()
    if not known or not ((steps == 0) | (steps == 1)).all():
        raise InputError(f"{path}: damaged rows of tokens; delete it")
    return dataset
