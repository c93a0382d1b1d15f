"""The progress of a distillation: everything that a resumed run needs, except for tensors."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridize.compress.distill.stages import STAGES
from hybridize.errors import InputError


@dataclass
class TrainerState:
    """The progress of a distillation.

    Attributes:
        stage_index: index of the current stage among the stages of the run.
        step: optimizer steps done in the stage.
        skipped: steps of the stage whose loss or gradients were not finite.
        metrics_lines: lines of the metrics file that belong to the run so far.
        validation: ``(step, loss)`` of every validation of the stage.
        perplexities: ``(step, perplexity)`` of every measurement of the stage.
        losses: first and last training loss of the stage.
        seconds: duration of the stage so far.
        results: the results of the finished stages, see `StageResult`.
    """

    stage_index: int = 0
    step: int = 0
    skipped: int = 0
    metrics_lines: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)
    perplexities: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    results: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainerState":
        """Return the state that `dataclasses.asdict` turned into JSON values.

        Raises:
            TypeError, KeyError: the values are others.
        """
        names = ("validation", "perplexities")
        return cls(**values | {name: [tuple(pair) for pair in values[name]] for name in names})

    def start_next_stage(self) -> None:
        """Count from zero for the next stage."""
        self.stage_index += 1
        self.step = self.skipped = 0
        self.validation, self.perplexities, self.losses, self.seconds = [], [], [], 0.0


def truncate_metrics(path: Path, count: int) -> None:
    """Keep the first ``count`` lines of a metrics file, which has one JSON object per line.

    Raises:
        InputError: one of them is damaged.
    """
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for line in lines[:count]:
            values = json.loads(line)
            numbers = [value for name, value in values.items() if name != "stage"]
            has_names = values["stage"] in STAGES and "step" in values
            if not has_names or not all(isinstance(n, int | float) for n in numbers):
                raise ValueError(f"{line} is not a step of a stage")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines[:count]), "utf-8")
    partial.replace(path)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot continue from this file: {error}; `force=True` starts the run again"
    )
