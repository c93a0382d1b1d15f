"""Load a packed dataset from the sources that a user names: files, datasets, or the teacher."""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.hub import resolve
from hybridize.console import console
from hybridize.data.mixing import Mixture
from hybridize.data.packing import Packed, PackedDataset, dataset_of
from hybridize.data.rows import DEFAULT_ROWS, RowOptions, RowReader
from hybridize.data.sources import TEACHER, Source, parse_sources
from hybridize.data.text_key import find_revisions, text_key
from hybridize.data.token_shards import (
    TRAINING,
    VALIDATION,
    Index,
    ShardWriter,
    check_shards,
    index_path,
    open_part,
    read_index,
)
from hybridize.data.token_streams import open_teacher, open_texts
from hybridize.errors import HybridizeError, InputError
from hybridize.output_files import write_atomically
from hybridize.progress import NoProgress, Progress

_SAMPLED_BESIDE = 4096
"""Tokens that ``teacher`` samples beside those that are used, for what a held-out part leaves of
its documents."""


def load_packed_dataset(
    sources: Sequence[str],
    *,
    model: str | Path,
    length: int,
    tokens: int | None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    cache: Path | None = None,
    option: str = "data",
    rows: RowOptions = DEFAULT_ROWS,
) -> PackedDataset:
    """Read or sample text, tokenize it, and pack it into sequences.

    Args:
        sources: files, directories, patterns or datasets on the hub, each with a weight or none
            (see `parse_sources`), or ``teacher`` alone.
        model: a directory or a hub id. Its tokenizer is used; ``teacher`` samples from it.
        length: tokens per sequence.
        tokens: maximum number of tokens; ``teacher`` needs a number.
        seed: random seed for sampling, shuffling and mixing.
        device, dtype: where to sample, and the dtype to compute in.
        cache: a directory that keeps the dataset, in files that are mapped into memory. A later
            call with the same arguments reads it. None: the dataset is in memory.
        option: keyword of the option that named the sources, for error messages.
        rows: how rows are read, and which of their tokens are learned.

    Raises:
        InputError: a source cannot be read, or has less text than one sequence.
    """
    text = TextLoader(
        sources, model, length, tokens, 0, seed, torch.device(device), dtype, option, rows
    )
    return text.load(cache)[0]


def load_training_text(
    sources: Sequence[str],
    *,
    model: str | Path,
    length: int,
    tokens: int,
    held_out: int,
    cache: Path,
    record: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    option: str = "data",
    rows: RowOptions = DEFAULT_ROWS,
) -> tuple[PackedDataset, PackedDataset]:
    """Return sequences to train on, and sequences of other documents for validation.

    Both are mapped from files in ``cache``. If the process is killed, the next call goes on where
    the last file ended.

    Args:
        sources, model, length, seed, device, dtype, option, rows: see `load_packed_dataset`.
        tokens: maximum number of tokens in both.
        held_out: number of sequences for validation; every source has its share of them.
        cache: a directory that keeps the text. Several runs may share it.
        record: a file of the run. It names the text that the run began with; a later call returns
            the same text, or fails.

    Raises:
        InputError: a source cannot be read, has too little text, or has changed since the run
            began.
    """
    text = TextLoader(
        sources, model, length, tokens, held_out, seed, torch.device(device), dtype, option, rows
    )
    training, validation = text.load(cache, record)
    return training, validation


@dataclass(frozen=True)
class TextLoader:
    """What `load_training_text` is given, and how its text is read."""

    given: Sequence[str]
    model: str | Path
    length: int
    tokens: int | None
    held_out: int
    seed: int
    device: torch.device
    dtype: torch.dtype | None
    option: str
    rows: RowOptions

    def load(
        self, cache: Path | None, record: Path | None = None
    ) -> tuple[PackedDataset, PackedDataset]:
        """Return the training text and the validation text."""
        directory = resolve(self.model)
        with CheckpointReader(directory) as reader:
            vocab_size = read_config(reader)[1].vocab_size
        recorded = _recorded_key(record)
        if cache is not None and recorded is not None:
            index = _complete_index(cache / f"packed-{recorded}", recorded, vocab_size)
            if index is not None:  # the sources may have changed or be gone
                return self._open(cache / f"packed-{recorded}", index)
        sources = parse_sources(self.given, self.option)
        self._check(sources)
        revisions = find_revisions(sources)
        if cache is None:
            return self._load_into_memory(sources, revisions, directory, vocab_size)
        key = text_key(sources, revisions, directory, self._settings(sources))
        if recorded is not None and recorded != key:
            raise InputError(
                f"`{self.option}={', '.join(self.given)}`: the text, or the tokenizer, has changed "
                "since the interrupted run began; `force=True` starts again"
            )
        if record is not None:
            write_atomically(record, key + "\n")
        target = cache / f"packed-{key}"
        with _locked(target):
            index = Index(
                key=key,
                length=self.length,
                vocab_size=vocab_size,
                masked=self.rows.loss_on != "all",
            )
            if index_path(target).exists():
                index = read_index(target, key, vocab_size)
                if index.complete:
                    return self._open(target, index)
                check_shards(target, index)
            self._write(target, index, sources, revisions, directory)
        return self._open(target, index, checked=True)

    def _check(self, sources: Sequence[Source]) -> None:
        """Check the numbers of tokens."""
        option = self.option
        if self.tokens is not None and self.tokens < self.length:
            raise InputError(
                f"`{option}`: {self.tokens} tokens are less than one sequence of {self.length}"
            )
        if self.tokens is None and sources[0].is_teacher:
            raise InputError(f"`{option}={TEACHER}`: give the number of tokens to sample")
        if self._limit is not None and self._limit <= 0:
            self._refuse(self._limit + self.held_out)

    @property
    def _limit(self) -> int | None:
        """Maximum number of training sequences."""
        return None if self.tokens is None else self.tokens // self.length - self.held_out

    def _refuse(self, sequences: int) -> None:
        """Refuse a text with too few sequences.

        Raises:
            InputError: always.
        """
        where = f"`{self.option}={', '.join(self.given)}`"
        if not self.held_out:
            raise InputError(f"{where}: less text than one sequence of {self.length} tokens")
        raise InputError(
            f"{where}: has {sequences} sequences of {self.length} tokens, and {self.held_out} are "
            "held out; give more text or lower `validation_sequences`"
        )

    def _settings(self, sources: Sequence[Source]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "length": self.length,
            "tokens": self.tokens,
            "held_out": self.held_out,
            "seed": self.seed,
        }
        if sources[0].is_teacher:
            settings |= {"device": self.device.type, "dtype": str(self.dtype)}
        return settings | self.rows.settings()

    def _mixture(
        self,
        sources: Sequence[Source],
        revisions: Sequence[str | None],
        model: Path,
        vocab_size: int,
        rows: RowReader,
        state: Any = None,
    ) -> Mixture:
        if sources[0].is_teacher:
            assert self.tokens is not None
            streams = [
                open_teacher(
                    model,
                    tokens=self.tokens + (_SAMPLED_BESIDE if self.held_out else 0),
                    seed=self.seed,
                    device=self.device,
                    dtype=self.dtype,
                    option=self.option,
                )
            ]
        else:
            streams = open_texts(
                sources,
                revisions,
                model=model,
                vocab_size=vocab_size,
                seed=self.seed,
                option=self.option,
                rows=rows,
                loss_on=self.rows.loss_on,
            )
        return Mixture(streams, self.length, self.seed, state)

    def _training(self, mixture: Mixture, done: int = 0) -> Iterator[Packed]:
        """Yield the training sequences of a mixture, the first ``done`` of which are written."""
        left = None if self._limit is None else self._limit - done
        total = None if self._limit is None else self._limit * self.length
        bar: AbstractContextManager[Progress] = nullcontext(NoProgress())  # sampling shows its own
        if self.given[0] != TEACHER:
            bar = console.progress("tokenizing", total, "tokens", completed=done * self.length)
        with bar as progress:
            for sequence in islice(mixture, left):
                progress.advance(self.length)
                done += 1
                yield sequence
        if not done:
            self._refuse(self.held_out)

    def _load_into_memory(
        self,
        sources: Sequence[Source],
        revisions: Sequence[str | None],
        model: Path,
        vocab_size: int,
    ) -> tuple[PackedDataset, PackedDataset]:
        rows = RowReader(self.rows)
        mixture = self._mixture(sources, revisions, model, vocab_size, rows)
        with _noting(rows):
            validation = dataset_of(mixture.hold_out(self.held_out), self.length)
            return dataset_of(list(self._training(mixture)), self.length), validation

    def _write(
        self,
        target: Path,
        index: Index,
        sources: Sequence[Source],
        revisions: Sequence[str | None],
        model: Path,
    ) -> None:
        """Write the shards that are missing."""
        rows = RowReader(self.rows)
        mixture = self._mixture(sources, revisions, model, index.vocab_size, rows, index.state)
        with _noting(rows):
            self._write_shards(ShardWriter(target, index), index, mixture)

    def _write_shards(self, writer: ShardWriter, index: Index, mixture: Mixture) -> None:
        if index.state is None:
            index.shards = {VALIDATION: [], TRAINING: []}
            for sequence in mixture.hold_out(self.held_out):
                if writer.add(sequence):
                    writer.write(VALIDATION, None)
            writer.write(VALIDATION, mixture.state())
        for sequence in self._training(mixture, sum(index.shards[TRAINING])):
            if writer.add(sequence):
                writer.write(TRAINING, mixture.state())
        writer.write(TRAINING, None, complete=True)

    def _open(
        self, directory: Path, index: Index, *, checked: bool = False
    ) -> tuple[PackedDataset, PackedDataset]:
        """Return the two parts of a directory, after a check of its files."""
        if not checked:
            check_shards(directory, index)
        return open_part(directory, index, TRAINING), open_part(directory, index, VALIDATION)


@contextmanager
def _noting(rows: RowReader) -> Iterator[None]:
    """Say at the end of the ``with`` block how many rows were skipped, also if it fails."""
    try:
        yield
    finally:
        note = rows.note()
        if note is not None:
            console.note(note)


def _recorded_key(record: Path | None) -> str | None:
    """Return the key of the text that a run began with; None if it has none yet.

    Raises:
        InputError: the file is damaged.
    """
    if record is None or not record.exists():
        return None
    try:
        key = record.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        key = ""
    if not re.fullmatch("[0-9a-f]{16}", key):
        raise InputError(f"{record}: is damaged; `force=True` starts the run again")
    return key


def _complete_index(directory: Path, key: str, vocab_size: int) -> Index | None:
    """Return the index of a directory; None if the text is not complete yet."""
    if not index_path(directory).exists():
        return None
    index = read_index(directory, key, vocab_size)
    return index if index.complete else None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Create a directory, and lock it during the ``with`` block, where the file system can.

    Raises:
        HybridizeError: it cannot be created.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HybridizeError(f"{directory}: cannot be created: {error.strerror}") from error
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
