"""Read the documents of a source: files, or a dataset on the hub."""

from collections.abc import Iterator
from typing import Any

from hybridize.data.file_formats import Documents, cut, read_file
from hybridize.data.hub_text import read_hub
from hybridize.data.sources import Source, parse_sources


def read_documents(source: str, option: str) -> Iterator[str]:
    """Yield the documents of one source.

    Args:
        source: a file, a directory, a pattern of files, or a dataset on the hub, see
            `parse_sources`. The suffix of a file gives its format. The ``text`` field or column is
            read; datasets are streamed.
        option: keyword of the option that named the source, for error messages.

    Raises:
        InputError: the source does not exist or cannot be read.
    """
    (parsed,) = parse_sources([source], option)
    return (text for _, text in read_source(parsed, option))


def read_source(
    source: Source,
    option: str,
    *,
    position: Any = None,
    seed: int | None = None,
    revision: str | None = None,
) -> Documents:
    """Yield the documents of a source with their positions, which are JSON values.

    A document of more than 2²⁰ characters becomes several.

    Args:
        source: not ``teacher``.
        option: keyword of the option that named the source, for error messages.
        position: of the first document to yield; None for the beginning.
        seed: a dataset on the hub is shuffled with it; None keeps its order.
        revision: of a dataset on the hub; None for the newest.

    Raises:
        InputError: the source cannot be read.
    """
    number, within, skipped = position or (0, None, 0)
    if source.is_hub:
        texts = read_hub(source.name, f"{option}={source.given}", within, seed, revision)
        yield from _cut(texts, 0, skipped)
    for index in range(number, len(source.files)):
        yield from _cut(read_file(source.files[index], within), index, skipped)
        within, skipped = None, 0


def _cut(texts: Documents, number: int, skipped: int) -> Documents:
    for within, text in texts:
        for count, part in enumerate(cut(text)):
            if count >= skipped:
                yield (number, within, count), part
        skipped = 0
