"""The order in which the training sequences are used."""

import torch


def batch_indices(step: int, batch_size: int, sequences: int, seed: int) -> torch.Tensor:
    """Return the indices of the sequences in the batch of a step, ``(batch_size,)`` int64.

    Every epoch contains each sequence once, in a new random order. The result depends only on the
    arguments, so a run can be resumed at any step.
    """
    first = step * batch_size
    indices = []
    for position in range(first, first + batch_size):
        epoch, offset = divmod(position, sequences)
        indices.append(int(_order(epoch, sequences, seed)[offset]))
    return torch.tensor(indices)


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


def _order(epoch: int, sequences: int, seed: int) -> torch.Tensor:
    key = (epoch, sequences, seed)
    if key not in _orders:
        _orders.clear()  # only one or two epochs are in use at a time
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        _orders[key] = torch.randperm(sequences, generator=generator)
    return _orders[key]
