"""The figures that the demo measures, one row per model."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.demo import KNOWLEDGE_SUBJECTS, RECALL_SUBJECTS
from hybridize.errors import HybridizeError

if TYPE_CHECKING:
    from hybridize.evals.results import ModelResult

CONTEXT = 32 * 1024
"""Number of tokens for which the size of the cache is reported."""


@dataclass(frozen=True)
class DemoModel:
    """A model that the demo made.

    Attributes:
        name: what was done to the original, as the table shows it.
        directory: its checkpoint.
    """

    name: str
    directory: Path


@dataclass(frozen=True)
class DemoRow:
    """The figures of one model.

    Attributes:
        model: what was done to the original, as the table shows it.
        directory: its checkpoint.
        layout: its layout pattern.
        parameters: number of parameters.
        weight_bytes: size of the weights on disk.
        accuracy: on the whole exam, 0 to 1.
        knowledge: accuracy on the subjects whose answers are in the weights.
        recall: accuracy on the subjects whose answers are in the context.
        recovery: accuracy divided by the original's.
        perplexity: on held-out text, per token.
        cache_bytes: size of the cache of one sequence of 32k tokens.
        speed: decoding tokens per second after the longest prompt, divided by the original's; None
            if it was not timed.
        difference: largest difference of a logit from the original's, both in transformers; None
            for a model with swapped blocks.
    """

    model: str
    directory: Path
    layout: str
    parameters: int
    weight_bytes: int
    accuracy: float
    knowledge: float
    recall: float
    recovery: float
    perplexity: float
    cache_bytes: int
    speed: float | None
    difference: float | None


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo measured.

    Attributes:
        rows: the original first.
        text: what transformers generates with the distilled model.
        report: the HTML page with the figures.
        seconds: duration of the demo.
    """

    rows: tuple[DemoRow, ...]
    text: str
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        rows = [asdict(row) | {"directory": row.directory.name} for row in self.rows]
        return {
            "rows": rows,
            "text": self.text,
            "report": self.report.name,
            "seconds": round(self.seconds, 1),
        }


def row_of(
    model: DemoModel,
    scores: "ModelResult",
    original: "ModelResult",
    *,
    speed: float | None = None,
    difference: float | None = None,
) -> DemoRow:
    """Collect the figures of a model.

    Args:
        model: the model.
        scores: its evaluation.
        original: the original's evaluation.
        speed: see `DemoRow`.
        difference: see `DemoRow`.

    Raises:
        HybridizeError: the evaluation does not cover the whole exam.
    """
    from hybridize.inspection.inspect import inspect

    subjects = (*KNOWLEDGE_SUBJECTS, *RECALL_SUBJECTS)
    report = inspect(model.directory, contexts=(CONTEXT,))
    accuracy = _accuracy(scores, subjects)
    if scores.perplexity is None:
        raise HybridizeError("the evaluation measured no perplexity")
    return DemoRow(
        model=model.name,
        directory=model.directory,
        layout=report.layout,
        parameters=report.parameters,
        weight_bytes=sum(path.stat().st_size for path in model.directory.glob("*.safetensors")),
        accuracy=accuracy,
        knowledge=_accuracy(scores, KNOWLEDGE_SUBJECTS),
        recall=_accuracy(scores, RECALL_SUBJECTS),
        recovery=accuracy / _accuracy(original, subjects),
        perplexity=scores.perplexity.perplexity,
        cache_bytes=report.cache[0].kv + report.cache[0].state,
        speed=speed,
        difference=difference,
    )


def _accuracy(scores: "ModelResult", subjects: Iterable[str]) -> float:
    """Return the accuracy over all questions of some subjects."""
    wanted = {f"mmlu_{subject}" for subject in subjects}
    found = [m for m in scores.metrics if m.task in wanted and m.metric == "acc"]
    if {metric.task for metric in found} != wanted:
        raise HybridizeError("the evaluation does not cover all subjects of the exam")
    return sum(m.value * m.questions for m in found) / sum(m.questions for m in found)
