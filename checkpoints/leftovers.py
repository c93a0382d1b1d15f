"""Working directories: creating them, and removing those that killed runs have left.

A run locks its working directory (flock). The operating system releases the lock when the process
ends, even if it is killed. So nobody uses a working directory that is not locked.
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
from hybridize.output_files import follow_link, unfinished

PARTIAL, REPLACED = "partial", "replaced"
_UNIQUE = "[0-9a-f]" * 8


def partial_name(output: Path) -> Path:
    """Return a name for a working directory beside an output, or beside what it is a link to."""
    target = follow_link(output)
    return target.with_name(f"{target.name}.{PARTIAL}-{uuid.uuid4().hex[:8]}")


def make_locked_directory(output: Path, partial: Path) -> int | None:
    """Create and lock a working directory, and remove those that killed runs have left.

    Args:
        output: the final name of the directory.
        partial: the working directory, see `partial_name`.

    Returns:
        The lock's file descriptor, to be closed at the end; None if the file system has no locks.

    Raises:
        OSError: the directory cannot be created.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial.parent):  # no other run may remove it before it is locked
        _remove_leftovers(output)
        unfinished.add(partial)
        partial.mkdir()
        return _lock(partial)


@contextmanager
def partial_directory(output: Path) -> Iterator[Path]:
    """Yield a working directory beside ``output``; remove it at the end if it still exists.

    Raises:
        OSError: the directory cannot be created.
    """
    partial = partial_name(output)
    lock = make_locked_directory(output, partial)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        unfinished.discard(partial)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(output: Path) -> None:
    beside = glob.escape(str(follow_link(output)))
    for path in map(Path, sorted(glob.glob(f"{beside}.{PARTIAL}-{_UNIQUE}"))):
        descriptor = _lock(path)
        if descriptor is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
            console.message(f"removed: {path}, left by an interrupted run")
    for name in sorted(glob.glob(f"{beside}.{REPLACED}-{_UNIQUE}")):
        console.message(
            f"note: an interrupted run renamed the previous {output} to {name}; delete it, or "
            "rename it to restore it"
        )


def _lock(directory: Path) -> int | None:
    """Lock a directory; None if another process has locked it or locks are not supported."""
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
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory during the ``with`` block, if the file system has locks; wait for others."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
