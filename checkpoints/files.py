"""Files of a checkpoint directory: which are carried along, and how they are hashed and read."""

import hashlib
import json
import os
import shutil
import uuid
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

from hybridize.checkpoints.leftovers import REPLACED
from hybridize.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROVENANCE = "hybridize.json"

CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "*.tiktoken",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What goes from a source to its result unchanged: glob patterns. Never code, never weights."""

_CHUNK = 1 << 20  # hashed while it is still in the processor's cache


def carried_files(source: Path) -> list[Path]:
    """Return the files of ``source`` that its results carry along, sorted."""
    return sorted({p for pattern in CARRIED for p in source.glob(pattern) if p.is_file()})


def sha256_of(path: Path, abandoned: Event | None = None) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Args:
        path: the file.
        abandoned: is set, by another thread, once nobody waits for the result any more.

    Raises:
        CancelledError: ``abandoned`` was set.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if abandoned is not None and abandoned.is_set():
                raise CancelledError
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the operating system put a file or a directory on the disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_part(descriptor: int, start: int, end: int) -> None:
    """Put bytes ``start`` to ``end`` of an open file on the disk, and out of the page cache."""
    if hasattr(os, "posix_fadvise"):
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
    else:
        os.fsync(descriptor)


def put_in_place(finished: Path, output: Path, *, force: bool) -> None:
    """Let a finished directory appear under its name.

    Args:
        finished: the directory, beside the output, synced.
        output: its name to be.
        force: replace what is there; a killed process leaves one or the other there, or the old
            one as ``OUTPUT.replaced-…``.
    """
    replaced = None
    if force and os.path.lexists(output):
        replaced = output.with_name(f"{output.name}.{REPLACED}-{uuid.uuid4().hex[:8]}")
    try:
        if replaced is not None:
            output.rename(replaced)
        finished.rename(output)
    except BaseException:
        if replaced is not None and not os.path.lexists(output):
            replaced.rename(output)
        raise
    sync(output.parent)
    if replaced is not None:
        if replaced.is_symlink():
            replaced.unlink()
        else:
            shutil.rmtree(replaced)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}; an object is needed")
    return value
