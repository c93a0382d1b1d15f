"""Writing checkpoints without a model, and comparing the contents of directories."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointWriter, TensorSpec
from hybridize.checkpoints.dtypes import SAFETENSORS_CODES, dtype_name, torch_dtype

Tensors = dict[str, torch.Tensor]

DTYPES = {code: torch_dtype(name) for name, code in SAFETENSORS_CODES.items()}
FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    return [TensorSpec(name, tuple(t.shape), dtype_name(t.dtype)) for name, t in tensors.items()]


def write_checkpoint(output: Path, tensors: Tensors, **options: Any) -> None:
    """Write tensors with `CheckpointWriter`; ``options`` are its arguments."""
    options = {"config": {"model_type": "test"}, "max_shard_size": 1 << 30} | options
    command = options.pop("command", "test")
    with CheckpointWriter(output, specs_of(tensors), **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish({"command": command, "source": {"name": "somewhere"}})


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes, row by row."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def snapshot(directory: Path) -> dict[str, str]:
    """Return everything in a directory: relative name to hash and modification time."""
    return {
        path.relative_to(directory).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() + f"@{path.stat().st_mtime_ns}"
            if path.is_file()
            else "directory"
        )
        for path in sorted(directory.rglob("*"))
    }
