"""The files of a checkpoint directory: names, hashing, syncing to disk, reading JSON."""

import hashlib
import json
import os
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

from hybridize.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROVENANCE = "hybridize.json"

_POINTER = b"version https://git-lfs.github.com/spec/"

_CHUNK = 1 << 20  # bytes; small enough to be in the CPU's cache when it is hashed


def refuse_pointer(path: Path) -> None:
    """Refuse a file that stands for another one, which git-lfs has not downloaded.

    Raises:
        InputError: the file is a pointer of git-lfs.
    """
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:  # whoever reads the file reports this
        return
    if is_pointer:
        raise InputError(
            f"{path}: is a git-lfs pointer and not the file itself; run git lfs pull there"
        )


def sha256_of(path: Path, stop: Event | None = None) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Args:
        path: the file.
        stop: another thread sets this event to stop the hashing.

    Raises:
        CancelledError: ``stop`` was set.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if stop is not None and stop.is_set():
                raise CancelledError
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_range(descriptor: int, start: int, end: int) -> None:
    """Write an open file to disk, and drop bytes ``start`` to ``end`` from the page cache."""
    if hasattr(os, "posix_fadvise"):
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
    else:
        os.fsync(descriptor)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        InputError: it cannot be read, or does not contain one JSON object.
    """
    refuse_pointer(path)
    try:
        # Some editors put a byte order mark first, which JSON does not allow.
        value = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is a JSON {type(value).__name__}; it must be a JSON object")
    return value
