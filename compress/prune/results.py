"""What a pruning found and did."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ScoredCandidate:
    """An architecture that was cut and measured.

    Attributes:
        what: in what it differs from the model.
        layout: its pattern.
        format: the on-disk architecture that holds it.
        parameters: how many.
        costs: what the budgets limit, in words.
        damage: what it was expected to lose, in nats per token.
        kl: divergence from the model on text that importance was not measured on, in nats per
            token; None where nothing was measured.
        kl_distilled: the same after a short distillation; None without one.
        chosen: whether it is the one.
    """

    what: str
    layout: str
    format: str
    parameters: int
    costs: tuple[str, ...]
    damage: float
    kl: float | None
    kl_distilled: float | None
    chosen: bool


@dataclass(frozen=True)
class PruningResult:
    """What was done, or would be.

    Attributes:
        source, output: directories.
        source_format, format: the on-disk architectures.
        reason: why this format.
        notes: what a user should know about the result.
        layout_before, layout_after: the patterns.
        distilled_tokens: what the result has learned from already; 0 if it is just cut.
        parameters_before, parameters_after: counts.
        bytes_before, bytes_after: sizes of the weights.
        costs_before: what the budgets limit, of the model as it was, in words.
        candidates: those that were measured, the best first.
        looked_at, fitting: architectures that were considered, and that met the budgets.
        block_importance: KL divergence that skipping each block costs, in nats per token, or the
            block's influence where one block at a time was in memory; None without weights.
        step_seconds: a decoding step of the model and of the result, measured; None without
            ``--latency`` and where they were not in memory.
        dry_run: whether nothing was written.
    """

    source: Path
    output: Path
    source_format: str
    format: str
    reason: str
    notes: tuple[str, ...]
    layout_before: str
    layout_after: str
    distilled_tokens: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    costs_before: tuple[str, ...]
    candidates: tuple[ScoredCandidate, ...]
    looked_at: int
    fitting: int
    block_importance: tuple[float, ...] | None
    step_seconds: tuple[float, float] | None
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}
