"""The recipes that `real_models.py` compares. To change one, change its entry in `ARMS`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT = "TEXT"
"""In the options of a conversion: replaced by the file of the training text."""


@dataclass(frozen=True)
class Arm:
    """One recipe: how the model is converted and how the result is trained.

    Attributes:
        convert: options of `hybridize.convert`.
        stages: the stages of `hybridize.distill` in order, with their fractions of the tokens.
        distill: other options of `hybridize.distill`.
        layers_of: the arm whose attention blocks are kept; None if ``convert`` chooses them.
        token_factors: the multiples of each milestone for which the arm is trained.
    """

    convert: Mapping[str, Any]
    stages: Mapping[str, float]
    distill: Mapping[str, Any] = field(default_factory=dict)
    layers_of: str | None = None
    token_factors: tuple[int, ...] = (1,)

    def recipe(self) -> dict[str, Any]:
        """Return everything that the result depends on, as JSON values."""
        return {
            "convert": dict(self.convert),
            "stages": dict(self.stages),
            "distill": dict(self.distill),
            "layers_of": ARMS[self.layers_of].recipe() if self.layers_of else None,
        }

    def stage_tokens(self, tokens: int) -> dict[str, int]:
        """Return the training tokens of each stage, given those of the whole run."""
        return {name: max(1, round(tokens * share)) for name, share in self.stages.items()}


_OUR_STAGES = {"kl": 1.0}
_OUR_TRAINING = {"train": "all", "learning_rates": {"kl": 1e-4}}
"""Calibrated blocks are close to a good solution; a higher rate first moves away from it.

At 50% and 30,000 tokens, the validation loss is 0.42 when the mixers train at 3e-4, 0.49 at 1e-3,
and 0.39 when the whole model trains at 1e-4, which takes 1.4 times as long.
"""

ARMS: dict[str, Arm] = {
    "hybridize": Arm(
        convert={
            "select": "sensitivity",
            "select_tokens": 2048,
            "calibration": TEXT,
            "calibration_tokens": 32_768,
        },
        stages=_OUR_STAGES,
        distill=_OUR_TRAINING,
    ),
    # Wang et al. 2024, "The Mamba in the Llama", arXiv 2408.15237: the new blocks get the weights
    # of the attention that they replace, every n-th attention block stays, and the new blocks are
    # trained to predict the teacher's distribution. Its learning rate is distill's default, 1e-3:
    # at 30,000 tokens and 50% the validation loss is 1.38 with it, 1.34 with 3e-3, 1.67 with 3e-4.
    # Four times the tokens show our head start.
    "mamba-in-the-llama": Arm(
        convert={"select": "uniform", "init": "attention", "ssm_groups": "heads"},
        stages={"kl": 1.0},
        token_factors=(1, 4),
    ),
    "random": Arm(convert={"init": "random"}, stages=_OUR_STAGES, layers_of="hybridize"),
}
"""All recipes by name."""
