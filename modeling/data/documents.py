"""Reading documents: text, JSON lines, Parquet, or a dataset of the hub."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridize.errors import InputError
from hybridize.modeling.extras import require_extra

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".parquet")
_SEPARATOR = "<|endoftext|>"
_COLUMN = "text"
_ROWS_AT_ONCE = 1000


def read_documents(source: str, option: str) -> Iterator[str]:
    """Yield the documents of one source.

    Args:
        source: a file (its suffix says of what kind), or a dataset of the hub as ``NAME`` or
            ``NAME:SPLIT``, of which the column ``text`` is streamed.
        option: where the source was named, for messages.

    Raises:
        InputError: no such source, or one that cannot be understood.
    """
    path = Path(source)
    if not os.path.exists(path):
        if path.suffix.lower() in SUFFIXES or path.is_absolute():
            raise InputError(f"{option} {source}: no such file")
        return _read_hub(source, option)
    if path.is_dir():
        raise InputError(f"{option} {source}: is a directory; name the files in it")
    match path.suffix.lower():
        case ".txt" | ".md":
            return _read_text(path)
        case ".jsonl" | ".json":
            return _read_json_lines(path)
        case ".parquet":
            return _read_parquet(path)
    raise InputError(f"{option} {source}: a file must end in {', '.join(SUFFIXES)}")


def _read_text(path: Path) -> Iterator[str]:
    """Yield a text, or the texts between lines of ``<|endoftext|>``."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    for part in text.split(_SEPARATOR):
        if part.strip():
            yield part.strip("\n")


def _read_json_lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text_of(line, f"{path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _text_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    return _checked(value.get(_COLUMN) if isinstance(value, dict) else None, where)


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: has no {_COLUMN!r} that is a string")
    return text


def _read_parquet(path: Path) -> Iterator[str]:
    require_extra("train", "pyarrow", "reading Parquet")
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if _COLUMN not in file.schema_arrow.names:
            raise InputError(f"{path}: has no column {_COLUMN!r}")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[_COLUMN]):
            for text in batch.column(0).to_pylist():
                yield _checked(text, str(path))
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: not a readable Parquet file: {reason[0]}") from error


def _read_hub(source: str, option: str) -> Iterator[str]:
    require_extra("train", "datasets", "reading datasets of the hub")
    import datasets

    name, _, split = source.partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for row in rows:
            yield _checked(row.get(_COLUMN), f"{option} {source}")
    except InputError:
        raise
    except Exception as error:  # datasets raises a different type for every kind of failure
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{option} {source}: no such file, and not to be had from the hub: {reason[0]}"
        ) from error
