"""Which tokens of a batch count in the loss, and the checks of a text's mask."""

from collections.abc import Sequence

import torch

from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError

_SEQUENCES = 256  # read at once


def counted_predictions(dataset: PackedDataset, indices: torch.Tensor) -> torch.Tensor | None:
    """Return which predictions of some sequences count in the loss; None if all do.

    The token at position t predicts the next one, so it counts if the token at t + 1 is learned and
    is in the same document.

    Args:
        dataset: the text.
        indices: ``(sequences,)``.

    Returns:
        ``(sequences, length)`` bool.
    """
    learned = dataset.mask(indices)
    if learned is None:
        return None
    _, seq_idx = dataset.sequences(indices)
    counted = torch.zeros_like(learned)
    counted[:, :-1] = learned[:, 1:] & (seq_idx[:, 1:] == seq_idx[:, :-1])
    return counted


def check_mask(training: PackedDataset, validation: PackedDataset, loss_on: str) -> None:
    """Check that a text has tokens that are learned, and others.

    Args:
        training, validation: the sequences.
        loss_on: the option.

    Raises:
        InputError: a part has no token that is learned, or no row has a prompt.
    """
    if loss_on == "all":
        return
    where = f"`loss_on={loss_on}`"
    for name, part, remedy in (
        ("training", training, "give longer sequences (`seq_len`) or more text"),
        ("validation", validation, "raise `validation_sequences`"),
    ):
        counts = (counted_predictions(part, chunk) for chunk in _chunks(part))
        if not any(counted is None or counted.any() for counted in counts):
            raise InputError(f"{where}: the {name} text has no token that is learned; {remedy}")
    parts = (training, validation)
    if all(mask is None or mask.all() for part in parts for mask in map(part.mask, _chunks(part))):
        raise InputError(
            f"{where}: the text has plain text only, of which all tokens are learned; give "
            "conversations, or leave the option out"
        )


def _chunks(dataset: PackedDataset) -> Sequence[torch.Tensor]:
    return torch.arange(len(dataset)).split(_SEQUENCES)
