"""The settings of the bundled checkpoint's training."""

import json
import math
from dataclasses import asdict, dataclass

from .texts import Mix


@dataclass(frozen=True)
class Stage:
    """A number of steps with one batch shape and one mix of documents.

    Attributes:
        steps: optimizer steps in the stage.
        length: tokens per sequence.
        rows: sequences per step.
        mix: the composition of the text.
        verdict_weight: weight of the verdict loss (see ``Trainer.verdict_loss``).
    """

    steps: int
    length: int
    rows: int
    mix: Mix
    verdict_weight: float = 0.0


@dataclass(frozen=True)
class Settings:
    """All settings of a training run. The defaults give the bundled checkpoint."""

    seed: int = 0
    hidden: int = 128
    intermediate: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    max_length: int = 1024
    rope_theta: float = 500_000.0
    verdict_layer: int = 5
    """The verdict loss applies to the hidden states after this many layers."""
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    decay_steps: int = 700
    weight_decay: float = 0.05
    answer_weight: float = 5.0
    """Weight of answers in the loss."""
    given_weight: float = 0.2
    """Weight of all other text in the loss. Much of it, such as names, cannot be predicted."""
    # A curriculum: (1) recall and find words; (2) judge options; (3) name the letter directly;
    # (4) the same after several shots. Without the first three stages, the letters would stay
    # random for longer than the whole training takes.
    stages: tuple[Stage, ...] = (
        Stage(700, 96, 16, Mix(drill=0.7, practice=1.0, echo=1.0)),
        Stage(1200, 128, 12, Mix(drill=0.3, recall=0.5, practice=0.5, max_questions=2), 1.0),
        Stage(1200, 160, 12, Mix(drill=0.1, recall=0.5, practice=0.1, max_questions=3), 1.0),
        Stage(700, 480, 5, Mix(drill=0.05, recall=0.5, practice=0.05), 1.0),
    )

    @property
    def steps(self) -> int:
        """Optimizer steps in all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """Return the stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("the step is after the last stage")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate: linear warm-up, constant, cosine decay in ``decay_steps``."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        left = min(1.0, (self.steps - step) / self.decay_steps)
        return self.learning_rate * warmup * (1 - math.cos(math.pi * left)) / 2

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self), sort_keys=True)
