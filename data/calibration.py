"""Load the text that `convert`, `prune` and `quantize` measure a model on.

The number of tokens is an option of each command; its default is in the command's ``config.py``.
"""

from pathlib import Path

import torch

from hybridize.data.load_text import load_packed_dataset
from hybridize.data.packing import PackedDataset
from hybridize.modeling.model_spec import ModelSpec

CALIBRATION_LENGTH = 512
"""Tokens per sequence, unless the model's context is shorter."""


def load_calibration(
    calibration: str,
    *,
    model: Path,
    config: ModelSpec,
    tokens: int,
    seed: int,
    device: torch.device,
    cache: Path | None = None,
) -> PackedDataset:
    """Return the text that the option `calibration` names, packed into sequences.

    Args:
        calibration: a file, a dataset on the hub, or ``teacher``: the model generates the text.
        model: the checkpoint's directory.
        config: its configuration.
        tokens: the maximum number of tokens.
        seed: random seed for generating the text.
        device: where to generate it.
        cache: a directory that keeps the dataset; see `load_packed_dataset`.

    Raises:
        InputError: the text cannot be read, or is shorter than one sequence.
    """
    return load_packed_dataset(
        [calibration],
        model=model,
        length=min(CALIBRATION_LENGTH, config.max_position_embeddings),
        tokens=tokens,
        seed=seed,
        device=device,
        cache=cache,
        option="calibration",
    )
