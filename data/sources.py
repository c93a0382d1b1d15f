"""What a user names as text: files, patterns, directories, datasets, and their weights."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from hybridize.console import console
from hybridize.errors import InputError

TEACHER = "teacher"
"""The name of the source for which the model generates the text."""

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".parquet")
COMPRESSED = (".gz", ".zst")
"""Suffixes that may follow those of `SUFFIXES`, except ``.parquet``."""

_MAX_WEIGHT = 1e6
_WEIGHT = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_NUMBER = re.compile(r"[-+]?[0-9.]*[0-9][0-9.,]*(e[-+]?[0-9]+)?%?|[-+]?(inf|nan)", re.I)


@dataclass(frozen=True)
class Source:
    """One source of text.

    Attributes:
        given: what the user gave, with the weight.
        name: the same without the weight.
        weight: its share of the text, relative to the other sources; None if none was given.
        files: the files to read, in order; empty for a dataset on the hub and for ``teacher``.
    """

    given: str
    name: str
    weight: float | None
    files: tuple[Path, ...]

    @property
    def is_teacher(self) -> bool:
        """Whether the model generates the text."""
        return self.name == TEACHER

    @property
    def is_hub(self) -> bool:
        """Whether it is a dataset on the hub."""
        return not self.files and not self.is_teacher


def parse_sources(given: Sequence[str | Path], option: str) -> list[Source]:
    """Return the sources that an option names.

    A source is ``teacher``, a file, a directory, a pattern of files such as ``corpus/*.jsonl``, or
    a dataset on the hub (``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIGURATION:SPLIT``). A number after
    a last colon is a weight, unless a file has exactly this name.

    Args:
        given: the sources.
        option: keyword of the option, for error messages.

    Raises:
        InputError: a source does not exist or cannot be read, or the weights are wrong.
    """
    for each in map(str, given):
        if each.partition(":")[0] == TEACHER and len(given) > 1:
            raise InputError(
                f"`{option}={each}` cannot be combined with other sources; leave them out"
            )
    sources = [_parse(str(each), option) for each in given]
    for source in sources:
        if source.is_teacher and source.weight is not None:
            raise InputError(
                f"`{option}={source.given}`: {TEACHER} takes no weight, because it is the only "
                "source; leave the weight out"
            )
    weighted = [source for source in sources if source.weight is not None]
    if len(sources) == 1 and weighted and sources[0].is_hub and ":" not in sources[0].name:
        name, number = sources[0].name, sources[0].given.rpartition(":")[2]
        raise InputError(
            f"`{option}={sources[0].given}`: the only source needs no weight; write {name}, or "
            f"{name}:{number}:1 if {number} is a split"
        )
    if weighted and len(weighted) < len(sources):
        without = next(source for source in sources if source.weight is None)
        raise InputError(
            f"`{option}={without.given}`: has no weight, but {weighted[0].given} has one; give "
            f"every source a weight, such as {without.given}:0.5, or none"
        )
    return sources


def _parse(given: str, option: str) -> Source:
    if given == TEACHER:
        return Source(given, given, None, ())
    where = f"`{option}={given}`"
    body, colon, number = given.rpartition(":")
    # A file may be named like a name with a weight.
    if not colon or _exists(given) or not _NUMBER.fullmatch(number):
        return Source(given, given, None, _files(given, where))
    weight = float(number) if _WEIGHT.fullmatch(number) else math.nan
    if not weight > 0:
        raise InputError(f"{where}: {number} is not a weight; give a number above 0, such as 0.7")
    if not 1 / _MAX_WEIGHT <= weight <= _MAX_WEIGHT:
        raise InputError(f"{where}: give a weight from {1 / _MAX_WEIGHT:g} to {_MAX_WEIGHT:g}")
    if body == TEACHER:
        return Source(given, body, weight, ())
    return Source(given, body, weight, _files(body, where))


def _exists(path: str) -> bool:
    return os.path.exists(path)  # also False for names that no file can have


def _files(name: str, where: str) -> tuple[Path, ...]:
    """Return the files that a name stands for; none if it must be a dataset on the hub."""
    path = Path(name)
    if _exists(name):
        if path.is_dir():
            return _below([path], where)
        if not is_text_file(path):
            raise InputError(f"{where}: a file must end in {_known()}")
        return (path,)
    found = sorted(map(Path, _glob(name)))
    if found:
        return _below(found, where)
    if _is_pattern(name):
        raise InputError(f"{where}: no file matches")
    body, _, rest = name.rpartition(":")
    if is_text_file(path) or path.is_absolute():
        raise InputError(f"{where}: no such file")
    if body and _exists(body):
        raise InputError(f"{where}: {rest} is not a weight; give a number above 0, such as 0.7")
    return ()


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


def _glob(name: str) -> list[str]:
    # Brackets alone may also be the slice of a split, such as train[:1000].
    if not _is_pattern(name) and "[" not in name:
        return []
    try:
        return glob(name, recursive=True)
    except (re.error, ValueError):
        return []


def _below(paths: Sequence[Path], where: str) -> tuple[Path, ...]:
    """Return all files with a known suffix among and below some paths.

    A note says how many there are, because the user did not name them one by one.
    """
    found = {path: None for top in paths for path in _walk(top)}
    files = tuple(path for path in found if is_text_file(path))
    if not files:
        raise InputError(f"{where}: contains no file that ends in {_known()}")
    kinds = Counter("".join(_suffixes(path)) for path in files)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    others = len(found) - len(files)
    console.note(
        f"{where}: {counts} files" + (f"; {others} other files are left out" if others else "")
    )
    return files


def _walk(top: Path) -> Iterator[Path]:
    """Yield the files below a directory in order, without hidden ones; a file yields itself."""
    if not top.is_dir():
        yield top
        return
    visited = set()
    for folder, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _suffixes(path: Path) -> list[str]:
    """Return the suffix of the format, and the one of the compression if there is one."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return suffixes if suffixes[-1:] and suffixes[-1] in COMPRESSED else suffixes[-1:]


def text_format(path: Path) -> tuple[str, str]:
    """Return the suffix of a file's format, and of its compression; each may be empty."""
    suffixes = _suffixes(path)
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), compression


def is_text_file(path: Path) -> bool:
    """Return whether a file's name ends like one that can be read."""
    suffix, compression = text_format(path)
    return suffix in SUFFIXES and not (compression and suffix == ".parquet")


def _known() -> str:
    return f"{', '.join(SUFFIXES)} (the first four also with {' or '.join(COMPRESSED)})"
