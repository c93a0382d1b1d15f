"""Read the documents of one file: text, JSON, JSON lines or Parquet, plain or compressed.

Each reader yields documents with their *positions*, JSON values. A reader that is given a position
starts with the document that had it.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from hybridize.checkpoints.files import refuse_pointer
from hybridize.data.conversations import Document
from hybridize.data.rows import RowReader
from hybridize.data.sources import text_format
from hybridize.errors import InputError, first_line
from hybridize.extras import require_extra
from hybridize.file_names import utf8_path

LONGEST = 1 << 20
"""Characters. A longer document is cut into several, because a tokenizer needs the whole text and
much memory for each character."""

Documents = Iterator[tuple[Any, Document]]
"""Positions and documents."""

_SEPARATOR = "<|endoftext|>"
_ROWS_PER_BATCH = 256
_BLOCK = 1 << 16


def read_file(path: Path, position: Any = None, rows: RowReader | None = None) -> Documents:
    """Yield the documents of a file, whose suffix gives its format.

    Args:
        path: the file.
        position: of the first document to yield; None for the beginning.
        rows: reads the rows of JSON and Parquet; by default, with the usual names of columns.

    Raises:
        InputError: the file cannot be read.
    """
    refuse_pointer(path)
    rows = rows or RowReader()
    match text_format(path)[0]:
        case ".txt" | ".md":
            return _read_text(path, position)
        case ".json" if _begins_with_bracket(path):
            return _read_json_array(path, position, rows)
        case ".parquet":
            return _read_parquet(path, position, rows)
    return _read_json_lines(path, position, rows)


def cut(text: str) -> list[str]:
    """Return a text in parts of at most `LONGEST` characters, cut at line ends if possible."""
    parts, begin = [], 0
    while len(text) - begin > LONGEST:
        end = text.rfind("\n", begin, begin + LONGEST) + 1 or begin + LONGEST
        parts.append(text[begin:end])
        begin = end
    return [*parts, text[begin:]]


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading its content, decompressed."""
    match text_format(path)[1]:
        case ".gz":
            return gzip.open(path)  # type: ignore[return-value]
        case ".zst":
            require_extra("train", "pyarrow", "reading .zst files")
            import pyarrow

            with utf8_path(path) as name:
                return io.BufferedReader(pyarrow.input_stream(str(name), compression="zstd"))
    return open(path, "rb")


def _guarded(path: Path, read: Callable[[IO[bytes]], Iterator[Any]]) -> Iterator[Any]:
    """Yield what a function reads from a file; turn the errors of reading into input errors."""
    try:
        with _open(path) as file:
            yield from read(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read as UTF-8 text: {first_line(error) or 'it is cut off'}"
        ) from error


_START = (0, 0, 0)


def _lines(path: Path, position: Any = None) -> Iterator[tuple[tuple[int, int, int], str]]:
    """Yield the lines of a file, with any line ending, without a byte order mark.

    The position of a line is: the offset of the part between two line feeds, in bytes; the number
    of lines before this part, and in it. A part has several lines if carriage returns alone end
    lines.
    """
    offset, before, within = position or _START

    def read(file: IO[bytes]) -> Iterator[tuple[tuple[int, int, int], str]]:
        _skip(file, offset)
        start, number = offset, before
        for part in file:
            text = part.decode("utf-8-sig" if start == 0 else "utf-8").replace("\r\n", "\n")
            lines = [text]
            if "\r" in text:
                lines = [line.replace("\r", "\n") for line in re.split("(?<=\r)", text) if line]
            for count, line in enumerate(lines):
                if start > offset or count >= within:
                    yield (start, number, count), line
            start, number = start + len(part), number + len(lines)

    return _guarded(path, read)


def _skip(file: IO[bytes], count: int) -> None:
    if file.seekable():
        file.seek(count)
        return
    while count > 0 and (block := file.read(min(count, _BLOCK))):
        count -= len(block)


def _read_text(path: Path, position: Any) -> Documents:
    """Yield the documents of a file. A line with only ``<|endoftext|>`` separates two documents."""
    part: list[str] = []
    first: Any = None
    size = 0
    for line_position, line in chain(_lines(path, position), [(_START, _SEPARATOR)]):
        separates = line.strip() == _SEPARATOR
        if separates or size + len(line) > LONGEST:
            document = "".join(part).strip("\n")
            if document.strip():
                yield first, document
            part, size = [], 0
        if not separates:
            first = first if part else line_position
            part.append(line)
            size += len(line)


def _begins_with_bracket(path: Path) -> bool:
    """Return whether a file contains one JSON array, not JSON lines, which are objects."""
    lines = _lines(path)
    try:
        return next((line.strip()[0] for _, line in lines if line.strip()), "") == "["
    finally:
        lines.close()  # type: ignore[attr-defined]


def _read_json_lines(path: Path, position: Any, rows: RowReader) -> Documents:
    for at, line in _lines(path, position):
        if line.strip():
            where = f"{path}: line {at[1] + at[2] + 1}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                rows.skip(InputError(f"{where}: not valid JSON: {error}"), where)
                continue
            document = rows.read(row, where)
            if document is not None:
                yield at, document


def _read_json_array(path: Path, position: Any, rows: RowReader) -> Documents:
    for number, value in enumerate(_guarded(path, lambda file: _entries(path, file)), 1):
        if number >= (position or 1):
            document = rows.read(value, f"{path}: entry {number}")
            if document is not None:
                yield number, document


def _entries(path: Path, file: IO[bytes]) -> Iterator[Any]:
    """Yield the entries of a JSON array without holding all of it in memory."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    scanner, number = _Scanner(text), 1
    try:
        scanner.expect("[")
        if scanner.next_character() != "]":
            yield scanner.value()
            while scanner.next_character() == ",":
                scanner.index += 1
                number += 1
                yield scanner.value()
        scanner.expect("]")
        if scanner.next_character():
            raise ValueError("there is more after the end of the array")
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{path}: not valid JSON: entry {number}: {reason}") from error
    finally:
        text.detach()


class _Scanner:
    """Reads JSON values one after the other from a text file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self.index = 0
        self._decoder = json.JSONDecoder()

    def _grow(self) -> bool:
        """Read at least as much as is in memory already; return whether there was more."""
        kept = self._text[self.index :]
        block = self._file.read(max(_BLOCK, len(kept)))
        self._text, self.index = kept + block, 0
        return bool(block)

    def next_character(self) -> str:
        """Skip white space; return the next character, or nothing at the end of the file."""
        while True:
            while self.index < len(self._text) and self._text[self.index] in " \t\n\r":
                self.index += 1
            if self.index < len(self._text):
                return self._text[self.index]
            if not self._grow():
                return ""

    def expect(self, character: str) -> None:
        """Skip a character.

        Raises:
            ValueError: another one is there.
        """
        if self.next_character() != character:
            raise ValueError(f"{character!r} is missing")
        self.index += 1

    def value(self) -> Any:
        """Return the next value.

        Raises:
            ValueError: it is not valid JSON.
        """
        self.next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.index)
                failure = None
            except json.JSONDecodeError as error:
                failure, end = error, len(self._text)
            # A value that ends with the text in memory may go on, such as a number.
            if end < len(self._text) or not self._grow():
                break
        if failure is not None:
            raise failure
        self.index = end
        return value


def _read_parquet(path: Path, position: Any, rows: RowReader) -> Documents:
    require_extra("train", "pyarrow", "reading Parquet")
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        with utf8_path(path) as name:
            file = pyarrow.parquet.ParquetFile(name)
            columns = rows.check_columns(file.schema_arrow.names, str(path))
            yield from _parquet_rows(path, file, position or 0, columns, rows)
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {first_line(error)}") from error


def _parquet_rows(
    path: Path, file: Any, first: int, columns: list[str], rows: RowReader
) -> Documents:
    """Yield the documents of a Parquet file from the row ``first`` on."""
    before, groups = 0, list(range(file.num_row_groups))
    while groups and before + file.metadata.row_group(groups[0]).num_rows <= first:
        before += file.metadata.row_group(groups.pop(0)).num_rows
    values = chain.from_iterable(
        batch.to_pylist()
        for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=groups, columns=columns)
    )
    for number, row in enumerate(values, before):
        document = rows.read(row, f"{path}: row {number + 1}") if number >= first else None
        if document is not None:
            yield number, document
