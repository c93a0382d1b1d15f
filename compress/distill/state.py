"""Where a distillation stands, on disk, so that a killed one goes on.

One safetensors file, never a pickle: the parameters that train, the optimizer's moments, the best
parameters so far, and in the header, as JSON, the step and everything else that is not a tensor.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.errors import InputError


@dataclass
class Progress:
    """Where a stage stands.

    Attributes:
        stage: its place among the stages.
        step: steps done.
        skipped: steps whose gradients were not finite.
        lines: lines of the metrics file that belong to the run so far.
        validation: ``(step, loss)`` of every validation of the stage.
        losses: first and last training loss of the stage.
        results: of the stages that are done.
    """

    stage: int = 0
    step: int = 0
    skipped: int = 0
    lines: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    results: list[dict[str, Any]] = field(default_factory=list)

    def next_stage(self) -> None:
        """Begin with the next stage."""
        self.stage += 1
        self.step = self.skipped = 0
        self.validation, self.losses, self.seconds = [], [], 0.0


def save_state(path: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Write down where a run stands; the file is the old one or the new one, never half of one."""
    save_checked(path, tensors, asdict(progress))


def load_state(path: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Read what `save_state` wrote.

    Raises:
        InputError: the file is damaged.
    """
    try:
        tensors, values = load_checked(path)
        values["validation"] = [tuple(pair) for pair in values["validation"]]
        return Progress(**values), tensors
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot go on from it: {error}; --force starts anew") from error


def keep_metrics(path: Path, count: int) -> None:
    """Cut a file of metrics, one JSON object a line, down to its first ``count`` lines.

    Raises:
        InputError: one of them is damaged.
    """
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for line in lines[:count]:
            values = json.loads(line)
            numbers = [value for name, value in values.items() if name != "stage"]
            named = isinstance(values["stage"], str) and "step" in values
            if not named or not all(isinstance(n, int | float) for n in numbers):
                raise ValueError(f"{line} is no step of a stage")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot go on from it: {error}; --force starts anew") from error
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines[:count]), "utf-8")
    partial.replace(path)
