"""The data of a report: results of eval, bench and prune, and histories of checkpoints."""

from dataclasses import dataclass, field
from pathlib import PurePath


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from: the command, its version and commit, and the file."""

    command: str
    version: str
    commit: str | None
    file: str

    def __str__(self) -> str:
        commit = f", commit {self.commit}" if self.commit else ""
        return f"hybridize {self.command} {self.version}{commit}, from {self.file}"


@dataclass(frozen=True)
class Score:
    """One metric of one model.

    Attributes:
        task: lm-eval's name of the task.
        label: the name to show; the exam's name where the task is a whole exam.
        headline: whether it belongs to a whole task rather than to a part of one.
        is_group: whether it averages other scores.
        value, stderr: the score and its standard error, 0 to 1.
        difference, recovery, p_value: relative to the baseline; None for the baseline and without
            one.
    """

    task: str
    label: str
    headline: bool
    is_group: bool
    value: float
    stderr: float | None
    difference: float | None
    recovery: float | None
    p_value: float | None


@dataclass(frozen=True)
class Evaluated:
    """The results of eval for one model."""

    model: str
    is_baseline: bool
    scores: tuple[Score, ...]
    perplexity: float | None
    origin: Origin


@dataclass(frozen=True)
class Benched:
    """The results of bench for one model at one point: tokens per second, and bytes per batch."""

    model: str
    backend: str
    prompt_len: int
    batch_size: int
    prefill: float
    decode: float
    decode_ratio: float | None
    cache_bytes: int
    origin: Origin


@dataclass(frozen=True)
class Choice:
    """A choice of attention blocks by sensitivity.

    Attributes:
        kept: the kept attention blocks, numbered from 0 among the attention blocks.
        curve: pairs of a number of attention blocks, and the KL divergence from the original in
            nats per token with the best choice of that many.
        origin: the conversion.
    """

    kept: tuple[int, ...]
    curve: tuple[tuple[float, float], ...]
    origin: Origin


@dataclass(frozen=True)
class Trained:
    """The history of a checkpoint.

    Attributes:
        model: its name.
        history: command, source and time of each record in its provenance.
        losses: for each stage, pairs of a training step and the loss on held-out sequences.
        choices: one for each conversion that measured sensitivity.
        origin: the last record.
    """

    model: str
    history: tuple[tuple[str, str, str], ...]
    losses: dict[str, list[tuple[float, float]]]
    choices: tuple[Choice, ...]
    origin: Origin


@dataclass(frozen=True)
class Importance:
    """The importance of each block of a model, as prune measured it.

    Attributes:
        blocks: for each block, the KL divergence in nats per token when it is skipped.
        kinds: the kind of each block.
        origin: the file.
    """

    blocks: tuple[float, ...]
    kinds: tuple[str, ...]
    origin: Origin


@dataclass
class Sources:
    """All data of a report."""

    evaluated: list[Evaluated] = field(default_factory=list)
    benched: list[Benched] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    importance: list[Importance] = field(default_factory=list)


def short_name(model: str) -> str:
    """Return the last part of a model's path."""
    return PurePath(model).name or model
