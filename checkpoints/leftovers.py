"""Directories in the making: telling those of a run that goes on from what a killed run has left.

A run holds a lock (flock) on the directory that it works in, which the system lifts when the
process ends, however it ends.
"""

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridize.console import console

PARTIAL, REPLACED = "partial", "replaced"
_UNIQUE = "[0-9a-f]" * 8


def begin(output: Path, partial: Path) -> int | None:
    """Make a directory to work in, and remove those that killed runs have left.

    Args:
        output: what it will become.
        partial: the directory, called ``OUTPUT.partial-…``.

    Returns:
        A descriptor to be closed with the work done; None where the file system has no locks.

    Raises:
        OSError: the directory cannot be made.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _held(partial.parent):  # between making it and locking it nobody must take it for old
        _remove_leftovers(output)
        partial.mkdir()
        return _lock(partial)


@contextmanager
def partial_directory(output: Path) -> Iterator[Path]:
    """Yield a directory beside ``output`` to work in; what is left of it in the end is removed.

    Raises:
        OSError: it cannot be made.
    """
    partial = output.parent / f"{output.name}.{PARTIAL}-{uuid.uuid4().hex[:8]}"
    lock = begin(output, partial)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(output: Path) -> None:
    beside = glob.escape(str(output.parent / output.name))
    for path in map(Path, sorted(glob.glob(f"{beside}.{PARTIAL}-{_UNIQUE}"))):
        descriptor = _lock(path)
        if descriptor is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
            console.message(f"removed: {path}, which a run that was stopped had left")
    for name in sorted(glob.glob(f"{beside}.{REPLACED}-{_UNIQUE}")):
        console.message(
            f"note: {name} is what {output} was before a run that was stopped; delete it, or "
            "rename it to have it back"
        )


def _lock(directory: Path) -> int | None:
    """Take a directory's lock; None where another holds it or there is none to be had."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Wait for a directory's lock and hold it meanwhile, where the file system has locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
