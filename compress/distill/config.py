"""The options of `hybridize.distill`.

The default tokens and learning rate of each stage are in `stages/__init__.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from hybridize.compress.distill.schedules import DECAYING, SCHEDULES, STABLE, lr_factor
from hybridize.compress.distill.stages import STAGES
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.data.rows import check_columns
from hybridize.errors import InputError
from hybridize.option_types import (
    Choice,
    Count,
    Flag,
    Float,
    Integer,
    Listed,
    Location,
    NameIn,
    PerName,
    Repeated,
    Size,
    Text,
    TextOrFlag,
)
from hybridize.options import (
    Config,
    device_option,
    dry_run_option,
    force_option,
    option,
    seed_option,
)

_DECAY_RATIO, _MIN_LR_RATIO = 0.2, 0.02


def _tokens_help(stage: str) -> str:
    spec = STAGES[stage]
    return (
        f"Training tokens of the {stage} stage, in which the student learns {spec.help}.  "
        f"[default: {Count().to_text(spec.tokens)}]"
    )


def _rate_help(stage: str) -> str:
    spec = STAGES[stage]
    default = f"{spec.learning_rate:g}"
    if spec.learning_rate_all != spec.learning_rate:
        default += f"; {spec.learning_rate_all:g} with `train=all`"
    return f"Peak learning rate of the {stage} stage.  [default: {default}]"


def _stages_that_train_all() -> list[str]:
    return [name for name, spec in STAGES.items() if not spec.trains_mixers_only]


def _other_rate_help(stage: str) -> str:
    return (
        f"Peak learning rate of all parameters outside of new mixers in the {stage} stage, with "
        f"`train=all`.  [default: that of `{stage}_lr`]"
    )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """The teacher and the text, the stages, and how they train the student."""

    teacher: str = option(Location("MODEL"), help="The model that STUDENT was converted from.")
    data: tuple[str, ...] = option(
        Repeated(Location("FILE|DIR|DATASET|teacher")),
        ("teacher",),
        help="Text to train on: a text, JSON, JSON lines or Parquet file; a directory or a pattern "
        "like 'corpus/*.jsonl'; a dataset on the hub (NAME, NAME:SPLIT or "
        "NAME:CONFIGURATION:SPLIT); or teacher: the teacher generates the text. May be repeated; "
        "then :NUMBER behind each source is its weight, as in a.jsonl:0.7.",
    )
    data_column: tuple[str, ...] = option(
        Repeated(Text("NAME=COLUMN")),
        (),
        help="The column, or field of JSON, that is read as NAME: text, messages, conversations, "
        "prompt, completion, tools, system or chat_template_kwargs. May be repeated.",
    )
    loss_on: str = option(
        Choice("all", "completion", "assistant"),
        "all",
        help="The tokens that the kl stage learns to predict. all: every token. completion: what "
        "follows the prompt; without a column for the prompt, the last message. assistant: all "
        "messages of the assistant. All tokens of plain text count.",
    )
    skip_bad_rows: bool = option(
        Flag(), False, help="Leave out malformed rows of the text, and say how many there were."
    )
    data_tokens: int | None = option(
        Count(),
        None,
        help="Maximum number of tokens of text to use, with those for validation.",
        default_text="what the longest stage needs",
    )
    stages: tuple[str, ...] = option(
        Listed(NameIn(lambda: STAGES), "NAME,…"),
        ("align", "kl"),
        help="Names of the stages to train, in this order.",
    )
    tokens: int | None = option(
        Count(),
        None,
        help="Training tokens of the last stage. The defaults of the other stages are scaled by "
        "the same factor.",
    )
    stage_tokens: Mapping[str, int] | None = option(
        PerName(Count(), "tokens", lambda: STAGES, _tokens_help),
        None,
        help="Training tokens by stage; takes precedence over `tokens`.",
    )
    learning_rates: Mapping[str, float] | None = option(
        PerName(Float(0, above=True), "lr", lambda: STAGES, _rate_help),
        None,
        help="Peak learning rates by stage.",
    )
    other_learning_rates: Mapping[str, float] | None = option(
        PerName(
            Float(0, above=True), "other_lr", lambda: _stages_that_train_all(), _other_rate_help
        ),
        None,
        help="Peak learning rates by stage of all parameters outside of new mixers.",
    )
    lr_schedule: str = option(
        Choice(*SCHEDULES),
        "cosine",
        help="How the learning rate changes during a stage, with transformers' names. constant has "
        "no warmup. warmup_stable_decay stays at the peak until the last part of the steps.",
    )
    decay_ratio: float | None = option(
        Float(0, 1, above=True),
        None,
        help="Fraction of a stage's steps with a falling learning rate, for "
        "`lr_schedule=warmup_stable_decay`.",
        default_text=str(_DECAY_RATIO),
    )
    min_lr_ratio: float | None = option(
        Float(0, 1),
        None,
        help="Learning rate at the end of a stage, as a fraction of its peak.",
        default_text=str(_MIN_LR_RATIO),
    )
    optimizer: str = option(
        Choice("adamw", "muon"),
        "adamw",
        help="muon updates the matrices of mixers with Muon and the other parameters with AdamW; "
        "it needs a single process.",
    )
    seq_len: int = option(Integer(2), 512, help="Tokens per sequence.")
    batch_size: int = option(
        Integer(1), 16, help="Sequences that all processes together compute at once."
    )
    global_batch_size: int | None = option(
        Integer(1),
        None,
        help="Sequences per optimizer step. Their gradients are added up over several passes of "
        "`batch_size` sequences, which needs less memory than one large pass.",
        default_text="batch-size",
    )
    train: str = option(
        Choice("mixers", "all"),
        "mixers",
        help="The parameters to train. mixers: the mixers of the new blocks. all: the whole "
        "model. The align stage always trains mixers.",
    )
    temperature: float = option(
        Float(0, above=True), 1.0, help="Softmax temperature of the kl stage."
    )
    label_weight: float = option(
        Float(0, 1),
        0.0,
        help="Weight of the cross-entropy on the text in the kl stage. The KL divergence has the "
        "rest of the weight.",
    )
    warmup_ratio: float = option(
        Float(0, 1), 0.1, help="Fraction of a stage's steps with a rising learning rate."
    )
    weight_decay: float = option(Float(0), 0.0, help="Weight decay. It applies to matrices only.")
    max_grad_norm: float = option(
        Float(0, above=True), 1.0, help="Maximum gradient norm; larger gradients are scaled down."
    )
    validation_sequences: int = option(
        Integer(1),
        16,
        help="Number of sequences held out for validation. They are the first documents of each "
        "source, in proportion to the weights.",
    )
    validate_every: int = option(Integer(1), 50, help="Steps between validations.")
    eval_every: int = option(
        Integer(0),
        0,
        help="Steps between measurements of the student's perplexity on the validation sequences, "
        "which are validated at the same steps; 0 measures none.",
    )
    patience: int = option(
        Integer(0),
        0,
        help="Stop a stage early after this many validations without improvement, or, with "
        "`eval_every`, after this many measurements of the perplexity; 0 never stops early.",
    )
    tbptt_length: int = option(
        Integer(0),
        0,
        help="Length of the segments in which the kl stage trains a sequence (truncated "
        "back-propagation through time), which saves memory; 0 trains whole sequences.",
    )
    gradient_checkpointing: bool = option(
        Flag(), False, help="Recompute activations in the backward pass, which saves memory."
    )
    cache_teacher: int = option(
        Integer(0, metavar="K"),
        0,
        help="Store the teacher's K most likely tokens at every position once. The kl stage then "
        "runs without the teacher. 0 stores nothing.",
    )
    cache_blocks: int | None = option(
        Size(),
        None,
        help="Store the inputs and outputs of the teacher's attention blocks once, in bfloat16 and "
        "in at most this much disk space. The align stage then reads them instead of running the "
        "teacher.",
        default_text="nothing is stored",
    )
    cache_dir: str | None = option(
        Location("DIR"),
        None,
        recorded=False,
        help="Directory for the packed text and for what `cache_teacher` and `cache_blocks` store. "
        "Runs with the same teacher and text can share it.",
        default_text="the run's working directory, which is deleted at the end",
    )
    dtype: str = option(
        Choice("auto", "float32", "bfloat16"),
        "auto",
        help="Dtype of the computation; auto is bfloat16 on CUDA, else float32. Trained "
        "parameters are float32.",
    )
    fp8: str | None = option(
        TextOrFlag("[SCHEME]", bare="fp8"),
        None,
        help="Train for a later quantization to FP8. SCHEME as in hybridize quantize: "
        f"{', '.join(SCHEMES)}; without SCHEME: fp8.",
    )
    keep_bf16: int | None = option(
        Integer(0),
        None,
        help="Number of first and of last blocks that `fp8` does not quantize.",
        default_text="as for hybridize quantize",
    )
    save_every: int = option(Integer(1), 200, recorded=False, help="Steps between saves.")
    resume: bool = option(Flag(), False, recorded=False, help="Continue an interrupted run.")
    seed: int = seed_option()
    device: str = device_option()
    force: bool = force_option()
    dry_run: bool = dry_run_option()

    @override
    def check_options(self) -> None:
        self._check_stages()
        if not self.data:
            raise InputError("`data`: name at least one source")
        self._check_rows()
        if self.fp8 is not None and self.fp8 not in SCHEMES:
            raise InputError(f"`fp8={self.fp8}`: choose one of {', '.join(SCHEMES)}")
        if self.keep_bf16 is not None and self.fp8 is None:
            raise InputError("`keep_bf16` needs `fp8`")
        if self.cache_teacher and self.temperature != 1.0:
            raise InputError(
                "`cache_teacher` stores the teacher's predictions at `temperature=1` only; "
                "leave one of them out"
            )
        self._check_schedule()
        for name in self.other_learning_rates or {}:
            if self.train != "all":
                raise InputError(f"`other_learning_rates[{name}]` needs `train=all`")
        if self.global_batch_size is not None and self.global_batch_size < self.batch_size:
            raise InputError(
                f"`global_batch_size={self.global_batch_size}`: give at least "
                f"`batch_size={self.batch_size}`, or a smaller `batch_size`"
            )
        self._check_readers(
            "cache_teacher", [n for n, s in STAGES.items() if s.reads_teacher_cache]
        )
        self._check_readers("cache_blocks", [n for n, s in STAGES.items() if s.reads_block_cache])

    def _check_rows(self) -> None:
        """Check the options of the rows of the text."""
        check_columns(self.data_column)
        if self.data[0] == "teacher":
            for name in ("data_column", "loss_on", "skip_bad_rows"):
                if getattr(self, name) not in ((), "all", False):
                    raise InputError(
                        f"`{name}` is for text with rows, but the teacher generates the text; name "
                        "the text with `data`, or leave the option out"
                    )
        masked = [name for name, spec in STAGES.items() if spec.masks_loss]
        if self.loss_on != "all" and not set(masked) & set(self.stages):
            raise InputError(
                f"`loss_on` is for the stages {', '.join(masked)}, but `stages` names none of them"
            )

    def _check_schedule(self) -> None:
        if self.decay_ratio is not None and self.lr_schedule != STABLE:
            raise InputError(f"`decay_ratio` needs `lr_schedule={STABLE}`")
        if self.min_lr_ratio is not None and self.lr_schedule not in DECAYING:
            raise InputError(
                f"`min_lr_ratio` needs a schedule that decays, `lr_schedule={self.lr_schedule}` "
                f"does not; choose one of {', '.join(DECAYING)}"
            )
        decay = (self.decay_ratio or _DECAY_RATIO) if self.lr_schedule == STABLE else 0.0
        if self.lr_schedule != "constant" and self.warmup_ratio + decay > 1:
            raise InputError(
                f"`warmup_ratio={self.warmup_ratio:g}` and `decay_ratio={decay:g}` are more than "
                "all steps; lower one of them"
            )

    def _check_readers(self, option_name: str, readers: list[str]) -> None:
        """Check that a stage of the run reads what an option stores."""
        if getattr(self, option_name) and not set(readers) & set(self.stages):
            raise InputError(
                f"`{option_name}` is for the stages {', '.join(readers)}, but `stages` names none "
                "of them"
            )

    def _check_stages(self) -> None:
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise InputError("`stages`: name one or more stages, each once")
        for option_name in ("stage_tokens", "learning_rates", "other_learning_rates"):
            for name in getattr(self, option_name) or {}:
                if name not in self.stages:
                    raise InputError(f"`{option_name}[{name}]`: `stages` does not name {name}")

    @property
    def accepts_any_student(self) -> bool:
        """Whether the student may have other blocks than the teacher, such as a pruned one."""
        return self.train == "all" and not any(
            STAGES[name].needs_matching_blocks for name in self.stages
        )

    def tokens_of(self, stage: str) -> int:
        """Return the number of training tokens of a stage."""
        if stage in (self.stage_tokens or {}):
            return (self.stage_tokens or {})[stage]
        factor = 1.0 if self.tokens is None else self.tokens / STAGES[self.stages[-1]].tokens
        return int(STAGES[stage].tokens * factor)

    def learning_rate_of(self, stage: str) -> float:
        """Return the peak learning rate of a stage."""
        spec = STAGES[stage]
        default = spec.learning_rate_all if self.train == "all" else spec.learning_rate
        return (self.learning_rates or {}).get(stage, default)

    def other_learning_rate_of(self, stage: str) -> float:
        """Return the peak learning rate of a stage's parameters outside of new mixers."""
        return (self.other_learning_rates or {}).get(stage, self.learning_rate_of(stage))

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a fraction of its peak; see `schedules`."""
        return lr_factor(
            self.lr_schedule,
            step,
            steps,
            warmup_ratio=self.warmup_ratio,
            decay_ratio=self.decay_ratio or _DECAY_RATIO,
            min_lr_ratio=_MIN_LR_RATIO if self.min_lr_ratio is None else self.min_lr_ratio,
        )

    def steps_of(self, stage: str) -> int:
        """Return the number of optimizer steps of a stage."""
        return max(1, self.tokens_of(stage) // (self.sequences_per_step * self.seq_len))

    @property
    def sequences_per_step(self) -> int:
        """Number of sequences of an optimizer step."""
        return self.global_batch_size or self.batch_size

    @override
    def record(self) -> dict[str, Any]:
        """Return the options that influence the result, with the values that each stage uses."""
        return super().record() | {
            "global_batch_size": self.sequences_per_step,
            "stage_tokens": {name: self.tokens_of(name) for name in self.stages},
            "learning_rates": {name: self.learning_rate_of(name) for name in self.stages},
        }

    def identity(self) -> dict[str, Any]:
        """Return the options that must not change when an interrupted run is resumed."""
        return self.record() | {"data": list(self.data), "seed": self.seed}
