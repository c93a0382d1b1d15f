"""Names that are not UTF-8. On Linux, the name of a file is any sequence of bytes.

Python represents each byte that is not UTF-8 by half of a surrogate pair (``surrogateescape``).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridize.errors import InputError


def utf8(text: str) -> bytes:
    r"""Encode a text as UTF-8. Bytes of a file name that are not UTF-8 become escapes (``\udce9``).

    JSON has the same escapes, so a program that reads the JSON gets the name that Python has for
    the file.
    """
    return text.encode("utf-8", "backslashreplace")


def is_utf8(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8."""
    return utf8(text).decode() == text


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield a path of an existing file or directory that every library can open.

    Libraries that are written in Rust or C++ refuse names that are not UTF-8. Such a file is opened
    here, and gets the name of its descriptor. That name is valid within the block.

    Raises:
        OSError: the file cannot be opened.
        InputError: the system has no names for descriptors.
    """
    if is_utf8(str(path)):
        yield path
        return
    if not os.path.isdir("/dev/fd"):
        raise InputError(f"{path}: the name is not UTF-8; rename it")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/dev/fd/{descriptor}")
    finally:
        os.close(descriptor)
