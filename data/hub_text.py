"""Read the texts of a dataset on the hub, as a stream."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np

from hybridize.checkpoints.hub_errors import reason_of
from hybridize.data.file_formats import Documents
from hybridize.data.rows import RowReader
from hybridize.errors import HybridizeError, InputError, first_line
from hybridize.extras import require_extra

_SHUFFLED_ROWS = 1000
_SHUFFLED_CHARACTERS = 1 << 24
_TIMEOUT = 10  # seconds


def find_revision(name: str) -> str | None:
    """Return the commit of a dataset on the hub; None if the hub cannot be asked.

    Args:
        name: see `read_hub`.
    """
    from huggingface_hub import dataset_info

    dataset, _, revision = name.partition(":")[0].partition("@")
    try:
        return dataset_info(dataset, revision=revision or None, timeout=_TIMEOUT).sha
    except Exception:  # each kind of failure has its own type; reading the dataset reports it
        return None


def read_hub(
    name: str,
    where: str,
    position: Any,
    seed: int | None,
    revision: str | None,
    rows: RowReader | None = None,
) -> Documents:
    """Yield the documents of a dataset with their positions.

    With a seed, the files of the dataset are read in random order, and 1,000 rows at a time are
    shuffled. A position is: the number of the file in this order; the state of its stream before
    the first of these rows; the number of rows before it; and the number of rows after it.

    Args:
        name: ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIGURATION:SPLIT``. ``NAME@REVISION`` names a
            branch, a tag or a commit.
        where: the option with its value, for error messages.
        position: of the first text to yield; None for the beginning.
        seed: for shuffling; None keeps the order.
        revision: the commit to read, see `find_revision`; None for the one that the name names.
        rows: reads the rows; by default, with the usual names of columns.

    Raises:
        InputError: the dataset cannot be read.
        HybridizeError: the connection, the hub or its cache fails.
    """
    require_extra("train", "datasets", "reading datasets from the hub")
    import datasets

    match name.split(":"):
        case [dataset]:
            chosen, split = list[str](), "train"
        case [dataset, split]:
            chosen = []
        case [dataset, configuration, split]:
            chosen = [configuration]
        case _:
            raise InputError(
                f"`{where}`: name a dataset as NAME, NAME:SPLIT or NAME:CONFIGURATION:SPLIT"
            )
    dataset, _, named = dataset.partition("@")
    options = {"revision": revision or named} if revision or named else {}
    started = False
    try:
        stream = datasets.load_dataset(dataset, *chosen, split=split, streaming=True, **options)
        for document in _read_stream(stream, where, position, seed, rows or RowReader()):
            started = True
            yield document
    except InputError:
        raise
    except Exception as error:  # each kind of failure has its own exception type
        if started:
            raise HybridizeError(
                f"`{where}`: the hub stopped sending the dataset: {first_line(error)}; run the "
                "command again"
            ) from error
        reason = reason_of(error, f"datasets/{dataset}", named or None, "the dataset")
        if reason is not None:
            raise reason.error(f"`{where}`", "file") from error
        raise InputError(
            f"`{where}`: no such file, and the hub has no such dataset: {first_line(error)}"
        ) from error


def _read_stream(
    stream: Any, where: str, position: Any, seed: int | None, rows: RowReader
) -> Documents:
    first, state, before, within = position or (0, None, 0, 0)
    files = getattr(stream, "num_shards", 1)
    order = np.arange(files)
    if seed is not None:
        order = np.random.default_rng([seed, 0]).permutation(files)
    for number in range(first, files):
        part = stream
        if files > 1:
            part = stream.shard(num_shards=files, index=int(order[number]))
        for at, row_number, row in _blocks(part, number, state, before, seed, rows):
            if at[2] > before or at[3] >= within:
                place = f"{_where(where, number, files)}row {row_number + 1}"
                document = rows.read(row, place)
                if document is not None:
                    yield at, document
        state, before, within = None, 0, 0


def _where(where: str, number: int, files: int) -> str:
    """Return the beginning of an error message about a row."""
    return f"`{where}`: " + (f"part {number + 1}, " if files > 1 else "")


def _blocks(
    part: Any, number: int, state: Any, before: int, seed: int | None, reader: RowReader
) -> Iterator[tuple[tuple[int, Any, int, int], int, Any]]:
    """Yield the position, the row number and the row of all rows, shuffled block by block."""
    resumable = hasattr(part, "state_dict")
    if state is not None:
        part.load_state_dict(deepcopy(state))  # the stream changes what it is given
    rows = iter(part)
    if state is None:
        next(islice(rows, before, before), None)
    rows = enumerate(rows, before)
    while True:
        block, size = [], 0
        for row_number, row in rows:
            block.append((row_number, row))
            size += reader.size(row)
            if seed is None or len(block) >= _SHUFFLED_ROWS or size >= _SHUFFLED_CHARACTERS:
                break
        if not block:
            return
        next_state = part.state_dict() if resumable else None
        if seed is not None:
            random = np.random.default_rng([seed, 1, number, before])
            block = [block[index] for index in random.permutation(len(block))]
        for index, (row_number, row) in enumerate(block):
            yield (number, state, before, index), row_number, row
        before += len(block)
        state = next_state
