"""The order in which the training sequences are used, and who computes which."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Part:
    """Some sequences of a batch that a process computes at once.

    Attributes:
        indices: ``(sequences,)`` int64, the sequences.
        weight: the factor of their mean loss. The sum of weighted losses over the parts of a batch,
            averaged over the processes, is the mean loss of the batch.
        counted: ``(sequences, length)`` bool, which of their predictions count; None for all.
    """

    indices: torch.Tensor
    weight: float
    counted: torch.Tensor | None = None


def split_batch(
    indices: torch.Tensor,
    at_once: int,
    rank: int = 0,
    size: int = 1,
    counted: torch.Tensor | None = None,
) -> list[Part]:
    """Return the parts of a batch that one process computes, one after the other.

    Every process gets the same number of parts, with the same numbers of sequences, because the
    processes exchange weights during each pass. Where sequences are left over, some processes
    therefore repeat one, with the weight 0.

    Args:
        indices: ``(sequences,)``, the whole batch.
        at_once: the number of sequences that all processes together compute at once.
        rank, size: the process, and the number of processes.
        counted: ``(sequences, length)`` bool, which predictions of the batch count. The weights
            then are shares of these predictions; all are 0 if there is none. None: all count.
    """
    parts = []
    for some in torch.arange(len(indices)).split(at_once):
        even = len(some) // size * size
        if even:
            parts.append((some[rank:even:size], even / len(indices)))
        if even < len(some):
            left_over = some[even:]
            own = left_over[rank : rank + 1]
            weight = size / len(indices) if len(own) else 0.0
            parts.append((own if len(own) else left_over[:1], weight))
    if counted is None:
        return [Part(indices[positions], weight) for positions, weight in parts]
    total = max(1, int(counted.sum()))
    return [
        Part(indices[p], size * int(counted[p].sum()) / total if weight else 0.0, counted[p])
        for p, weight in parts
    ]


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


def _order(epoch: int, sequences: int, seed: int) -> torch.Tensor:
    key = (epoch, sequences, seed)
    if key not in _orders:
        _orders.clear()  # only one or two epochs are in use at a time
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        _orders[key] = torch.randperm(sequences, generator=generator)
    return _orders[key]


def next_tokens(ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
    """Return each token's next token within its document; -100 at the end of a document."""
    same = seq_idx[:, 1:] == seq_idx[:, :-1]
    return torch.nn.functional.pad(ids[:, 1:].masked_fill(~same, -100), (0, 1), value=-100)
