"""Which rows a step trains on."""

import torch


def rows_of_step(step: int, batch_size: int, rows: int, seed: int) -> torch.Tensor:
    """Return the row numbers of a step's batch, ``(batch_size,)``.

    Every row comes once before any comes again, in an order of its own each time. The result
    depends on the arguments alone, so that a run can go on from any step.
    """
    first = step * batch_size
    numbers = []
    for place in range(first, first + batch_size):
        epoch, offset = divmod(place, rows)
        numbers.append(int(_order(epoch, rows, seed)[offset]))
    return torch.tensor(numbers)


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


def _order(epoch: int, rows: int, seed: int) -> torch.Tensor:
    key = (epoch, rows, seed)
    if key not in _orders:
        _orders.clear()  # one or two are in use at a time
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        _orders[key] = torch.randperm(rows, generator=generator)
    return _orders[key]
