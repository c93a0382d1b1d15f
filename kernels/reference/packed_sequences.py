"""Packed sequences: several sequences one after the other in a row of the batch."""

import torch


def number_sequences(seq_idx: torch.Tensor) -> torch.Tensor:
    """Number the sequences of each row from 0, because a number in ``seq_idx`` may occur twice.

    Args:
        seq_idx: ``(batch, length)``; a sequence begins where the number changes.

    Returns:
        ``(batch, length)`` int32.
    """
    starts = seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0
    return starts.cumsum(1, dtype=torch.int32)
