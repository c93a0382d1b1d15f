"""The result of `hybridize.distill`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """The figures of a stage.

    Attributes:
        stage: the stage's name.
        steps, tokens: number of steps and tokens of training.
        skipped: steps that were skipped because the loss or its gradient was not finite.
        loss_first, loss_last: training loss of the first and the last step; None if every step
            was skipped.
        validation_before, validation_after: loss on the held-out sequences.
        seconds: duration of training and validation.
        perplexity_before, perplexity_after: the student's, on the held-out sequences, of the tokens
            that ``loss_on`` names; None without the option ``eval_every``.
    """

    stage: str
    steps: int
    tokens: int
    skipped: int
    loss_first: float | None
    loss_last: float | None
    validation_before: float
    validation_after: float
    seconds: float
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class DistillResult:
    """The figures of a distillation, or of the plan for one.

    Attributes:
        student, teacher, output: directories.
        swapped: indices of the blocks that replaced attention.
        trained: number of trained parameters.
        fp8_layers: number of linear layers that compute in FP8.
        shared: number of parameters that student and teacher share in memory.
        training_sequences, validation_sequences: number of sequences; 0 for a dry run.
        steps: number of steps of each stage, by name.
        stages: the figures of each stage; empty for a dry run.
        dry_run: whether this is only a plan.
    """

    student: Path
    teacher: Path
    output: Path
    swapped: tuple[int, ...]
    trained: int
    fp8_layers: int
    shared: int
    training_sequences: int
    validation_sequences: int
    steps: dict[str, int]
    stages: tuple[StageResult, ...]
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        paths = {name: str(getattr(self, name)) for name in ("student", "teacher", "output")}
        stages = [
            asdict(stage) | {"tokens_per_second": stage.tokens_per_second} for stage in self.stages
        ]
        return asdict(self) | paths | {"stages": stages}
