"""The result of `hybridize.prune`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ScoredCandidate:
    """A smaller architecture and its measurements.

    Attributes:
        changes: the differences from the model, as text.
        layout: one letter per block.
        format: the on-disk format.
        parameters: the number of parameters as stored.
        costs: the cost for each budget, with its unit.
        damage: the expected KL divergence, in nats per token.
        kl: KL divergence from the model in nats per token, on text that importance was not measured
            on. None if it was not measured.
        kl_distilled: the same after a short distillation. None without one.
        chosen: whether this candidate was written.
    """

    changes: str
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
    """The result of a pruning, or its plan if nothing was written.

    Attributes:
        source, output: directories.
        source_format, format: the on-disk formats.
        reason: why this format was chosen.
        notes: remarks on the result for the user.
        layout_before, layout_after: one letter per block.
        distilled_tokens: the number of tokens that the result was distilled on; 0 if it is only
            cut.
        parameters_before, parameters_after: numbers of parameters.
        bytes_before, bytes_after: sizes of the weights.
        costs_before: the model's cost for each budget, with its unit.
        candidates: the candidates, best first.
        considered, fitting: the number of architectures in the search space, and of those that meet
            the budgets.
        block_importance: KL divergence in nats per token when each block is skipped. With
            `offload`, the block's influence instead. None without weights.
        step_seconds: measured duration of a decoding step of the model and of the result. None
            without `latency`, and with `offload`.
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
    considered: int
    fitting: int
    block_importance: tuple[float, ...] | None
    step_seconds: tuple[float, float] | None
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}
