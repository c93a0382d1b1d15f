"""What a student can learn, one file a stage.

A new stage is one file with a `Stage` and one line in ``STAGES``.
"""

from importlib import import_module
from typing import Protocol

import torch
from torch import nn

from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.settings import DistillSettings
from hybridize.errors import InputError


class Stage(Protocol):
    """A loss, and what it trains.

    Attributes:
        parameters: by name in the student.
    """

    parameters: dict[str, nn.Parameter]

    def learn(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """Add the gradients of a batch's mean loss to the parameters'; return the loss.

        Args:
            ids, seq_idx: ``(rows, length)``, see `PackedDataset`.
            rows: ``(rows,)``, their numbers.
        """

    def measure(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """Return a batch's loss, without gradients."""


STAGES = {"align": "Align", "hidden": "Hidden", "kl": "KL"}
"""Name on the command line, and of the module here, to the class in it."""

DEFAULT_TOKENS = {"align": 2_000_000, "hidden": 2_000_000, "kl": 8_000_000}
DEFAULT_LEARNING_RATES = {"align": 1e-3, "hidden": 1e-3, "kl": 1e-3}
"""Of new blocks. What was trained before would be thrown back by them: see `default_rates`."""

_RATE_OF_ALL = 3e-4


def default_rates(train: str) -> dict[str, float]:
    """Return each stage's peak learning rate for what ``--train`` names."""
    if train == "mixers":
        return dict(DEFAULT_LEARNING_RATES)
    return DEFAULT_LEARNING_RATES | dict.fromkeys(("hidden", "kl"), _RATE_OF_ALL)


def check_stages(names: tuple[str, ...]) -> None:
    """Check that all stages exist, and each is named once.

    Raises:
        InputError: one is unknown or named twice, or there is none.
    """
    for name in names:
        if name not in STAGES:
            raise InputError(f"--stages {name}: choose from {', '.join(STAGES)}")
    if not names or len(set(names)) < len(names):
        raise InputError("--stages: name one stage or more, each once")


def make_stage(name: str, pair: Pair, settings: DistillSettings) -> Stage:
    """Return a stage that is ready to learn."""
    module = import_module(f"hybridize.compress.distill.stages.{name}")
    stage: Stage = getattr(module, STAGES[name])(pair, settings)
    return stage
