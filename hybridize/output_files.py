"""Where outputs are written: links, mount points, and files that appear complete or not at all."""

import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from hybridize.errors import InputError
from hybridize.file_names import utf8
from hybridize.interrupts import uninterrupted

unfinished: set[Path] = set()
"""Files and directories that are being written. `remove_unfinished` deletes them."""


def follow_link(path: Path) -> Path:
    """Return where an output is written: the end of the chain of links, or the path itself.

    A new output is written beside the end of the chain and renamed there, so that the link stays
    and the bytes are on the disk that the link names.

    Raises:
        InputError: the links form a loop, or the directory that they lead to does not exist.
    """
    if not os.path.islink(path):  # unlike Path's method, accepts names that no file can have
        return path
    target = Path(os.path.realpath(path))
    if os.path.islink(target):
        raise InputError(f"{path}: is a link that leads back to itself; delete it")
    if not os.path.isdir(target.parent):
        raise InputError(
            f"{path}: is a link to {target}, but {target.parent} is not a directory; make it, or "
            "delete the link"
        )
    return target


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted on a file or directory, bind mounts included."""
    if os.path.ismount(path):
        return True
    try:  # a bind mount has the device number of its parent, if both are on one file system
        with open("/proc/self/mountinfo", "rb") as file:
            points = {line.split(b" ")[4] for line in file}
    except (OSError, IndexError):  # not Linux
        return False
    decoded = {re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), one) for one in points}
    return os.fsencode(os.path.realpath(path)) in decoded


def check_output_file(path: Path, *, force: bool) -> None:
    """Check that an output file can be written, before any work is done.

    Raises:
        InputError: the file exists and ``force`` is false; it is no ordinary file; or no file can
            be created beside it.
    """
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory; give the name of a file")
    if os.path.exists(path) and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: is not an ordinary file; give another name")
    target = follow_link(path)
    if os.path.exists(target) and is_mount_point(target):
        raise InputError(
            f"{path}: is a mount point, which cannot be replaced; name another file, in a "
            "directory that is mounted"
        )
    if os.path.exists(target) and not force:
        raise InputError(f"{path}: exists; `force` replaces it")
    if not os.path.isdir(target.parent):
        raise InputError(f"{path}: its directory does not exist; make it first")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{path}: its directory is not writable")
    try:
        _partial(target).lstat()
    except FileNotFoundError:
        return
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all, where a link leads to. Text is encoded by `utf8`."""
    target = follow_link(path)
    partial = _partial(target)
    unfinished.add(partial)
    try:
        with partial.open("xb") as file:
            file.write(utf8(content) if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        with uninterrupted(f"{path} is complete"):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        unfinished.discard(partial)


def remove_unfinished() -> None:
    """Delete what is left of unfinished outputs.

    They are deleted where they are written. But a signal can arrive between the creation of a file
    and the ``try`` that deletes it.
    """
    while unfinished:
        path = unfinished.pop()
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
