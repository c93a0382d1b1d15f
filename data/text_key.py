"""The key of a packed text: a hash of everything that it depends on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridize.checkpoints.carried_files import is_tokenizer_file
from hybridize.checkpoints.files import sha256_of
from hybridize.console import console
from hybridize.data.hub_text import find_revision
from hybridize.data.sources import Source, text_format
from hybridize.errors import InputError

_SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_VERSION = 2  # increase it when the same arguments give another dataset


def find_revisions(sources: Sequence[Source]) -> list[str | None]:
    """Return the commit of every dataset on the hub; None for other sources."""
    return [find_revision(source.name) if source.is_hub else None for source in sources]


def text_key(
    sources: Sequence[Source],
    revisions: Sequence[str | None],
    model: Path,
    settings: dict[str, Any],
) -> str:
    """Return a hash of everything that a packed text depends on.

    It covers the contents of files, and the names and commits of datasets on the hub. It also
    covers all small files of the model's directory, because only transformers knows which of them
    belong to the tokenizer. If the model generates the text, it covers the weights too: size and
    date cannot distinguish retrained weights from the old ones, and hashing is much faster than
    sampling.

    Args:
        sources: the sources.
        revisions: the commits, see `find_revisions`.
        model: the directory of the tokenizer.
        settings: the other values that the text depends on, as JSON values.

    Raises:
        InputError: a file cannot be read.
    """
    suffixes: tuple[str, ...] = _SMALL_SUFFIXES
    if any(source.is_teacher for source in sources):
        suffixes += (".safetensors",)
    own = [
        path
        for path in sorted(model.iterdir())
        if (path.suffix in suffixes or is_tokenizer_file(path.name)) and path.is_file()
    ]
    files = [*own, *(path for source in sources for path in source.files)]
    hashes = iter(_hashes(files))
    parts: list[Any] = [_VERSION, settings, [[path.name, next(hashes)] for path in own]]
    for source, revision in zip(sources, revisions, strict=True):
        contents = [[*text_format(path), next(hashes)] for path in source.files]
        parts.append([source.weight, contents or [source.name, revision]])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _hashes(files: Sequence[Path]) -> list[str]:
    hashes = []
    try:
        total = sum(path.stat().st_size for path in files)
        with console.progress("hashing the text", total, "bytes") as progress:
            for path in files:
                hashes.append(sha256_of(path))
                progress.advance(path.stat().st_size)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashes
