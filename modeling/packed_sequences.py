"""Packed sequences: several sequences one after the other in a row of the batch.

There are two descriptions of a row. ``seq_idx`` has the number of each token's sequence.
``position_ids`` has each token's position in its sequence, from zero.
"""

import torch
from torch import nn


def seq_idx_from_positions(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Number the sequences in each row, given the positions of their tokens.

    Args:
        position_ids: ``(batch, length)``; a sequence begins where they do not rise by one.

    Returns:
        ``(batch, length)``; None if every row is one sequence.
    """
    starts = position_ids.diff(dim=-1) != 1
    if not starts.any():
        return None
    return nn.functional.pad(starts, (1, 0)).cumsum(-1)


def positions_from_seq_idx(seq_idx: torch.Tensor) -> torch.Tensor:
    """Count the tokens of every sequence from zero.

    Args:
        seq_idx: ``(batch, length)``; a sequence begins where the number changes.

    Returns:
        ``(batch, length)``.
    """
    position = torch.arange(seq_idx.shape[1], device=seq_idx.device).expand_as(seq_idx)
    starts = nn.functional.pad(seq_idx.diff(dim=-1) != 0, (1, 0), value=True)
    return position - (position * starts).cummax(-1).values
