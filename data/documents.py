"""Read documents from text files, JSON, JSON lines, Parquet, or a dataset on the hub."""

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hybridize.checkpoints.hub_errors import reason_of
from hybridize.errors import InputError, first_line
from hybridize.extras import require_extra
from hybridize.file_names import is_utf8, utf8_path

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".parquet")
_SEPARATOR = "<|endoftext|>"
_COLUMN = "text"
_ROWS_PER_BATCH = 1000


def read_documents(source: str, option: str) -> Iterator[str]:
    """Yield the documents of one source.

    Args:
        source: a file, whose suffix gives its format, or a dataset on the hub: ``NAME``,
            ``NAME:SPLIT`` or ``NAME:CONFIGURATION:SPLIT``, where ``NAME@REVISION`` names a branch,
            a tag or a commit. The dataset's ``text`` column is streamed.
        option: keyword of the option that named the source, for error messages.

    Raises:
        InputError: the source does not exist or cannot be read.
        HybridizeError: the connection, the hub or its cache fails.
    """
    path = Path(source)
    if not os.path.exists(path):
        if path.suffix.lower() in SUFFIXES or path.is_absolute():
            raise InputError(f"`{option}={source}`: no such file")
        return _read_hub(source, option)
    if path.is_dir():
        raise InputError(f"`{option}={source}`: is a directory; name the files in it")
    match path.suffix.lower():
        case ".txt" | ".md":
            return _read_text(path)
        case ".json" if _begins_with_bracket(path):
            return _read_json_array(path)
        case ".jsonl" | ".json":
            return _read_json_lines(path)
        case ".parquet":
            return _read_parquet(path)
    raise InputError(f"`{option}={source}`: a file must end in {', '.join(SUFFIXES)}")


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, with any line ending, without a byte order mark."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _read_text(path: Path) -> Iterator[str]:
    """Yield the documents of a file. A line with only ``<|endoftext|>`` separates two documents."""
    part: list[str] = []
    for line in chain(_lines(path), [_SEPARATOR]):
        if line.strip() != _SEPARATOR:
            part.append(line)
            continue
        document = "".join(part).strip("\n")
        if document.strip():
            yield document
        part = []


def _begins_with_bracket(path: Path) -> bool:
    """Return whether a file contains one JSON array, not JSON lines, which are objects."""
    return next((line.strip()[0] for line in _lines(path) if line.strip()), "") == "["


def _read_json_array(path: Path) -> Iterator[str]:
    for number, value in enumerate(_parsed("".join(_lines(path)), str(path)), 1):
        yield _text_of(value, f"{path}: entry {number}")


def _read_json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _text_of(_parsed(line, where), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error


def _text_of(row: Any, where: str) -> str:
    text = row.get(_COLUMN) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{where}: {_COLUMN!r} is missing or not a string")
    if not is_utf8(text):  # JSON allows "\ud800", which no tokenizer accepts
        raise InputError(f"{where}: {_COLUMN!r} contains half of a surrogate pair")
    return text


def _read_parquet(path: Path) -> Iterator[str]:
    require_extra("train", "pyarrow", "reading Parquet")
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        with utf8_path(path) as name:
            file = pyarrow.parquet.ParquetFile(name)
            if _COLUMN not in file.schema_arrow.names:
                raise InputError(f"{path}: has no column {_COLUMN!r}")
            rows = chain.from_iterable(
                batch.to_pylist() for batch in file.iter_batches(_ROWS_PER_BATCH, columns=[_COLUMN])
            )
            for number, row in enumerate(rows, 1):
                yield _text_of(row, f"{path}: row {number}")
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {first_line(error)}") from error


def _read_hub(source: str, option: str) -> Iterator[str]:
    require_extra("train", "datasets", "reading datasets from the hub")
    import datasets

    match source.split(":"):
        case [name]:
            chosen, split = list[str](), "train"
        case [name, split]:
            chosen = []
        case [name, configuration, split]:
            chosen = [configuration]
        case _:
            raise InputError(
                f"`{option}={source}`: name a dataset as NAME, NAME:SPLIT or "
                "NAME:CONFIGURATION:SPLIT"
            )
    name, _, revision = name.partition("@")
    options = {"revision": revision} if revision else {}
    try:
        rows = datasets.load_dataset(name, *chosen, split=split, streaming=True, **options)
        for number, row in enumerate(rows, 1):
            yield _text_of(row, f"`{option}={source}`: row {number}")
    except InputError:
        raise
    except Exception as error:  # each kind of failure has its own exception type
        reason = reason_of(error, f"datasets/{name}", revision or None, "the dataset")
        if reason is not None:
            raise reason.error(f"`{option}={source}`", "file") from error
        raise InputError(
            f"`{option}={source}`: no such file, and the hub has no such dataset: "
            f"{first_line(error)}"
        ) from error
