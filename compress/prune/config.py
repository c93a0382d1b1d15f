"""The options of `hybridize.prune`."""

from dataclasses import dataclass
from typing import Any

from hybridize.compress.prune.axes import axes_help, axis_names
from hybridize.compress.prune.budget_text import parse_latency, parse_memory, parse_params
from hybridize.errors import InputError
from hybridize.option_types import (
    Choice,
    Count,
    Flag,
    Integer,
    Listed,
    Location,
    NameIn,
    ParsedText,
    Size,
    Text,
)
from hybridize.options import (
    Config,
    device_option,
    dry_run_option,
    dtype_option,
    force_option,
    option,
    seed_option,
)

_DEFAULT_TOKENS = 200_000


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Config):
    """The budget, the axes along which the model is cut, and how candidates are compared."""

    params: str | None = option(
        ParsedText("PERCENT%|N", parse_params),
        None,
        help="Maximum number of parameters: a percentage of MODEL's (70%) or a number (1.3B).",
    )
    memory: str | None = option(
        ParsedText("SIZE@CONTEXT[xBATCH]", parse_memory),
        None,
        help="Maximum memory of weights, cache and states at a context length, such as "
        "24GiB@65536x4.",
    )
    latency: str | None = option(
        ParsedText("SHARE[@CONTEXT[xBATCH]]", parse_latency),
        None,
        help="Maximum time of a decoding step on this machine, as a share of MODEL's, such as "
        "0.7@65536.",
    )
    axes: tuple[str, ...] = option(
        Listed(NameIn(axis_names), at_least=1),
        None,
        help=f"What may be cut. {axes_help()}.",
        default_text="all",
    )
    widths: str = option(
        Choice("uniform", "per-block"),
        "uniform",
        help="uniform: all blocks of a kind get the same width. per-block: each block gets its own "
        "width; only hybridize's own format can store the result.",
    )
    calibration: str = option(
        Location("FILE|DIR|DATASET|teacher"),
        "teacher",
        help="Text that importance is measured on. teacher: MODEL generates the text.",
    )
    calibration_tokens: int = option(
        Count(),
        16_384,
        help="Number of tokens of the calibration text to use. A quarter of them is held out to "
        "measure the candidates.",
    )
    candidates: int = option(
        Integer(1), 16, help="Number of architectures to cut in memory and to measure."
    )
    distill_top: int = option(
        Integer(0, metavar="K"),
        0,
        help="Distill the best K candidates on `tokens` tokens each, and keep the best of them.",
    )
    tokens: int | None = option(
        Count(),
        None,
        help="Training tokens of each `distill_top` candidate.",
        default_text=Count().to_text(_DEFAULT_TOKENS),
    )
    weight_bits: int | None = option(
        Integer(1),
        None,
        help="Bits per weight of the linear layers that `memory` counts, if they will be "
        "quantized.",
        default_text="as stored",
    )
    kv_bits: int | None = option(
        Integer(1),
        None,
        help="Bits per key and value that `memory` counts, if they will be quantized.",
        default_text="as the weights are stored",
    )
    multiple_of: int | None = option(
        Integer(1),
        None,
        help="The hidden size and the MLP width become multiples of N.",
        default_text="about a sixteenth of the size",
    )
    scores: str | None = option(
        Location("FILE"),
        None,
        recorded=False,
        help="File with measured importance. It is read if it exists, else written.",
    )
    offload: bool = option(
        Flag(),
        False,
        help="Load only one block at a time. Candidates are then ranked by importance alone.",
    )
    format: str = option(
        Text("auto|NAME"),
        "auto",
        help="On-disk format. auto: MODEL's own if it can store the result.",
    )
    dtype: str = dtype_option("Dtype of the written weights; auto keeps the source's.")
    max_shard_size: int = option(Size(), 5 * 10**9, help="Maximum size of a weight file.")
    resume: bool = option(Flag(), False, recorded=False, help="Continue an interrupted run.")
    seed: int = seed_option()
    device: str = device_option()
    force: bool = force_option()
    dry_run: bool = dry_run_option()

    def check_options(self) -> None:
        """Check the options against each other; see `Config.check`."""
        if self.axes is None:  # the default
            self._set("axes", axis_names())
        self._check_budgets()
        if self.tokens is not None and not self.distill_top:
            raise InputError("`tokens` needs `distill_top`")
        if self.offload and self.distill_top:
            raise InputError("`distill_top` trains whole models, but `offload` loads single blocks")
        if self.distill_top > self.candidates:
            raise InputError(
                f"`distill_top={self.distill_top}`: there are only `candidates={self.candidates}`"
            )
        if self.widths == "per-block" and self.format not in ("auto", "hybridize"):
            raise InputError(
                f"`format={self.format}` cannot store `widths=per-block`; use `format=hybridize`"
            )

    def _check_budgets(self) -> None:
        if self.params is self.memory is self.latency is None:
            raise InputError(
                "give a budget: `params=70%`, `memory=24GiB@65536` or `latency=0.7`, or several"
            )
        if self.memory is None and (self.weight_bits, self.kv_bits) != (None, None):
            raise InputError("`weight_bits` and `kv_bits` need `memory`")

    def identity(self) -> dict[str, Any]:
        """Return the options that must not change when an interrupted run is resumed."""
        return self.record() | {"calibration": self.calibration, "seed": self.seed}

    @property
    def tokens_per_candidate(self) -> int:
        """The training tokens of each `distill_top` candidate."""
        return _DEFAULT_TOKENS if self.tokens is None else self.tokens
