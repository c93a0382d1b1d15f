"""Loops over the rows of tensors, in tiles that fit into the CPU's caches."""

from collections.abc import Iterator

import torch

_TILE = 1 << 17
"""Elements per tile: 512 KiB in float32, half of a common second-level cache."""


def reference_is_as_fast(tensor: torch.Tensor) -> bool:
    """Return whether tiles would gain no time: one is enough, and no gradient is needed."""
    return tensor.numel() <= _TILE and not torch.is_grad_enabled()


def row_tiles(*tensors: torch.Tensor, multiple: int = 32) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield tiles, views of ``(rows, width)``, with the same rows of every tensor.

    Args:
        tensors: ``(..., width)`` each, with the same leading dimensions. A tensor that is written
            to must be contiguous; otherwise its view would be a copy.
        multiple: the rows per tile are a multiple of this. torch may round the last few elements
            of a call differently, because its vector loops do not reach them. With 32, the tile
            size does not change the result.
    """
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    rows = max(1, _TILE // max(1, flat[0].shape[1]) // multiple) * multiple
    yield from zip(*(tensor.split(rows) for tensor in flat), strict=True)
