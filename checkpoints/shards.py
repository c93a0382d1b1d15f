"""Distributing tensors over safetensors files of a limited size."""

from collections.abc import Sequence

from hybridize.checkpoints.files import WEIGHTS
from hybridize.checkpoints.header import TensorSpec


def plan_shards(tensors: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """Fill shards in order; a shard exceeds ``max_bytes`` only if it has a single tensor."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in tensors:
        if shards[-1] and size + spec.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """Return the file names of ``count`` shards, as transformers names them."""
    if count == 1:
        return [WEIGHTS]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
