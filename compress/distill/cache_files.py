"""Files of what the teacher computed, found again by the teacher and the text.

The name of a file is a hash of everything that its content depends on. So runs with the same
teacher and text can share a directory, and no run reads the file of another teacher or text.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.checkpoints.files import sha256_of
from hybridize.console import console
from hybridize.data.packing import PackedDataset

_VERSION = 1  # increase it when the same arguments give another content


def fingerprint(teacher: Path, dtype: str) -> str:
    """Return a hash of a teacher's weights, configuration and dtype of computation."""
    with CheckpointReader(teacher) as reader:
        parts = [_VERSION, reader.sha256(), sha256_of(teacher / "config.json"), dtype]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def content_key(
    teacher: str, dataset: PackedDataset, indices: torch.Tensor, settings: dict[str, Any]
) -> str:
    """Return the key of what a teacher computes for some sequences.

    Args:
        teacher: see `fingerprint`.
        dataset, indices: the sequences.
        settings: what is stored, as JSON values.
    """
    digest = hashlib.sha256(json.dumps([teacher, settings], sort_keys=True).encode())
    for part in dataset.sequences(indices):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.int().numpy().data)
    return digest.hexdigest()[:32]


def is_intact(path: Path, key: str) -> bool:
    """Return whether a file exists, has its checksum, and was written for this key."""
    if not path.exists():
        return False
    try:
        _, about = load_checked(path)
        if about.get("key") != key:
            raise ValueError("it belongs to another teacher or text")
    except (OSError, ValueError) as error:
        console.message(f"{path}: is damaged and will be written again: {error}")
        return False
    return True


def write(path: Path, key: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file. It appears only when it is complete; several runs may write it at once.

    Raises:
        HybridizeError: the file cannot be written.
    """
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_checked(own, tensors, {"key": key})
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)
        own.with_name(f"{own.name}.partial").unlink(missing_ok=True)
