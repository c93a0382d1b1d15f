"""Everything that decides what a distillation does, beside its models and its data."""

from dataclasses import asdict, dataclass
from typing import Any

from hybridize.errors import InputError

TRAINABLE = ("mixers", "all")


@dataclass(frozen=True)
class DistillSettings:
    """Settings, with the defaults of the command line.

    Attributes:
        stages: which, in their order; see `stages`.
        tokens: training tokens of each stage, by name.
        learning_rates: peak learning rate of each stage, by name.
        seq_len: tokens per row.
        batch_size: rows per step.
        train: ``mixers`` (the swapped blocks' mixers) or ``all``; ``align`` trains mixers only.
        temperature: of the KL stage.
        label_weight: share of the cross-entropy to the text in the KL stage.
        warmup: share of a stage's steps in which the learning rate rises.
        weight_decay: of matrices.
        clip: largest norm of a step's gradient.
        validation: rows held out.
        validate_every: steps between validations.
        patience: validations without improvement after which a stage ends; 0 for never.
        segment: tokens at a time in long rows, with state carried and gradients cut between
            them (truncated back-propagation through time); 0 for whole rows.
        gradient_checkpointing: recompute activations in the backward.
        cache_teacher: likeliest tokens of the teacher to write down, so that the KL stage runs
            without it; 0 for none.
        fp8: the scheme that will quantize the result, to be trained for; None to train as it is.
        keep_bf16: with ``fp8``, blocks at either end that will not be quantized; see
            `hybridize.quantize`.
        seed: of everything random.
        dtype: ``float32`` or ``bfloat16``: what is computed in; what trains stays float32.
    """

    stages: tuple[str, ...] = ("align", "kl")
    tokens: dict[str, int] | None = None
    learning_rates: dict[str, float] | None = None
    seq_len: int = 512
    batch_size: int = 16
    train: str = "mixers"
    temperature: float = 1.0
    label_weight: float = 0.0
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    validation: int = 16
    validate_every: int = 50
    patience: int = 0
    segment: int = 0
    gradient_checkpointing: bool = False
    cache_teacher: int = 0
    fp8: str | None = None
    keep_bf16: int | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size", "validation", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{_option(name)} {getattr(self, name)}: it must be at least 1")
        for name in ("patience", "segment", "cache_teacher", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{_option(name)} {getattr(self, name)}: it cannot be negative")
        for name in ("temperature", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{_option(name)} {getattr(self, name)}: it must be positive")
        for name in ("label_weight", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{_option(name)} {getattr(self, name)}: choose from 0 to 1")
        if self.train not in TRAINABLE:
            raise InputError(f"--train {self.train}: choose one of {', '.join(TRAINABLE)}")
        if self.segment and self.gradient_checkpointing:
            raise InputError("--segment and --gradient-checkpointing exclude each other")
        if self.keep_bf16 is not None and self.fp8 is None:
            raise InputError("--keep-bf16 goes with --fp8")
        if self.keep_bf16 is not None and self.keep_bf16 < 0:
            raise InputError(f"--keep-bf16 {self.keep_bf16}: it cannot be negative")
        if self.cache_teacher and self.temperature != 1.0:
            raise InputError("--cache-teacher knows the teacher at --temperature 1 only")
        if self.cache_teacher and "kl" not in self.stages:
            raise InputError("--cache-teacher serves the kl stage, which --stages leaves out")

    def steps(self, stage: str) -> int:
        """Return how many steps a stage takes."""
        assert self.tokens is not None
        return max(1, self.tokens[stage] // (self.batch_size * self.seq_len))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self) | {"stages": list(self.stages)}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
