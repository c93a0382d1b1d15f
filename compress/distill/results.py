"""What a distillation reports."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        stage: its name.
        steps, tokens: done.
        skipped: steps left out because the gradient was not finite.
        loss_first, loss_last: of training; None where every step was skipped.
        validation_before, validation_after: on rows that were held out.
        seconds: of training and validating.
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

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class DistillResult:
    """What a distillation did, or would do.

    Attributes:
        student, teacher, output: directories.
        swapped: places of the blocks that replaced attention.
        trained: parameters that train.
        fp8_layers: linear layers that compute in FP8.
        shared: parameters that student and teacher have in memory once.
        rows, validation_rows: rows of text; 0 for a dry run, which reads none.
        steps: of each stage, by name.
        stages: what they did; empty for a dry run.
        dry_run: whether nothing was trained.
    """

    student: Path
    teacher: Path
    output: Path
    swapped: tuple[int, ...]
    trained: int
    fp8_layers: int
    shared: int
    rows: int
    validation_rows: int
    steps: dict[str, int]
    stages: tuple[StageResult, ...]
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        paths = {name: str(getattr(self, name)) for name in ("student", "teacher", "output")}
        stages = [
            asdict(stage) | {"tokens_per_second": stage.tokens_per_second} for stage in self.stages
        ]
        return asdict(self) | paths | {"stages": stages}
