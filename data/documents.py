"""Read the documents of a source: files, or a dataset on the hub."""

from collections.abc import Iterator
from typing import Any

from hybridize.data.file_formats import Documents, cut, read_file
from hybridize.data.hub_text import read_hub
from hybridize.data.rows import RowReader
from hybridize.data.sources import Source, parse_sources
from hybridize.errors import InputError


def read_documents(source: str, option: str) -> Iterator[str]:
    """Yield the documents of one source of plain text.

    Args:
        source: a file, a directory, a pattern of files, or a dataset on the hub, see
            `parse_sources`. The suffix of a file gives its format. The ``text`` field or column is
            read; datasets are streamed.
        option: keyword of the option that named the source, for error messages.

    Raises:
        InputError: the source does not exist, cannot be read, or has other documents.
    """
    (parsed,) = parse_sources([source], option)
    for _, document in read_source(parsed, option):
        if not isinstance(document, str):
            raise InputError(f"{document.where}: is not plain text; give a text")
        yield document


def read_source(
    source: Source,
    option: str,
    *,
    position: Any = None,
    seed: int | None = None,
    revision: str | None = None,
    rows: RowReader | None = None,
) -> Documents:
    """Yield the documents of a source with their positions, which are JSON values.

    A text of more than 2²⁰ characters becomes several.

    Args:
        source: not ``teacher``.
        option: keyword of the option that named the source, for error messages.
        position: of the first document to yield; None for the beginning.
        seed: a dataset on the hub is shuffled with it; None keeps its order.
        revision: of a dataset on the hub; None for the newest.
        rows: reads the rows; by default, with the usual names of columns.

    Raises:
        InputError: the source cannot be read.
    """
    number, within, skipped = position or (0, None, 0)
    if source.is_hub:
        texts = read_hub(source.name, f"{option}={source.given}", within, seed, revision, rows)
        yield from _cut(texts, 0, skipped)
    for index in range(number, len(source.files)):
        yield from _cut(read_file(source.files[index], within, rows), index, skipped)
        within, skipped = None, 0


def _cut(documents: Documents, number: int, skipped: int) -> Documents:
    for within, document in documents:
        # A part of a conversation could not be rendered.
        parts = cut(document) if isinstance(document, str) else [document]
        for count, part in enumerate(parts):
            if count >= skipped:
                yield (number, within, count), part
        skipped = 0
