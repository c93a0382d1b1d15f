"""Files of results: check that they can be written, and write each one atomically."""

import os
import secrets
from pathlib import Path

from hybridize.errors import InputError


def check_output_file(path: Path, *, force: bool) -> None:
    """Check that an output file can be written, before any work is done.

    Raises:
        InputError: the file exists and ``force`` is false, or its directory does not exist or is
            not writable.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give the name of a file")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; `force` replaces it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: its directory is not writable")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Text is encoded as UTF-8."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
