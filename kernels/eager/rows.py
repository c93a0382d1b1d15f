"""Walking over the rows of some tensors, as many at a time as fit into the caches."""

from collections.abc import Iterator

import torch

_TILE = 1 << 17
"""Elements of one tensor at a time: 512 KiB in float32, half of a common second-level cache."""


def is_one_tile(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is one tile, and no gradient is wanted: plain code then is as good."""
    return tensor.numel() <= _TILE and not torch.is_grad_enabled()


def row_tiles(*tensors: torch.Tensor, least: int = 32) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield views of ``(rows, width)``, the same rows of every tensor.

    Args:
        tensors: ``(..., width)`` each, the same leading dimensions. One that is written to has
            to be contiguous, or the view would be a copy.
        least: rows at a time are a multiple of this. torch's vector loops round the last few
            elements of a call differently: with 32, results do not depend on the tiles.
    """
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    at_once = max(1, _TILE // max(1, flat[0].shape[1]) // least) * least
    yield from zip(*(tensor.split(at_once) for tensor in flat), strict=True)
