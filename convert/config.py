"""The options of `hybridize.convert`."""

from dataclasses import dataclass

from typing_extensions import override

from hybridize.errors import InputError
from hybridize.option_types import Choice, Flag, Integer, Listed, Location, Size, Text
from hybridize.options import (
    Config,
    device_option,
    dry_run_option,
    dtype_option,
    force_option,
    option,
    seed_option,
)

INITS = ("attention", "random")
"""The values of ``init`` that are not directories."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    """The options of `hybridize.convert`."""

    attention: str | None = option(
        Text("N|PERCENT%"),
        None,
        help="How many attention blocks to keep: a number or a percentage.",
        default_text="25%",
    )
    keep: tuple[int, ...] | None = option(
        Listed(Integer(0), "I,J,…"),
        None,
        help="Keep exactly these attention blocks, counted from 0.",
    )
    pattern: str | None = option(
        Text("STR"),
        None,
        help="The layout of the result, one letter per block: * attention, M Mamba-2, - MLP. "
        "Only * can become M.",
    )
    select: str = option(
        Choice("uniform", "sensitivity", "recall"),
        "uniform",
        help="How to choose the attention blocks to keep. uniform: evenly spaced. sensitivity: "
        "those whose removal increases the KL divergence most. recall: those whose removal hurts "
        "the retrieval of earlier tokens most. Both measure on the calibration text, with the "
        "whole model in memory.",
    )
    select_tokens: int = option(
        Integer(1),
        4096,
        help="Number of tokens of the calibration text on which `select` measures.",
    )
    init: str = option(
        Location("attention|random|DIR"),
        "attention",
        help="First values of the new blocks. attention: from the attention that they replace. "
        "random: as for a new model. DIR: copied from a hybrid of the same MODEL.",
    )
    calibration: str | None = option(
        Location("FILE|DIR|DATASET|teacher"),
        None,
        help="Fit the new blocks to the outputs of the attention on this text, in closed form. "
        "teacher: MODEL generates the text.",
        default_text="none; teacher if `select` measures",
    )
    calibration_tokens: int = option(
        Integer(1), 8192, help="Number of tokens of the calibration text to use."
    )
    ssm_groups: str = option(
        Text("kv|heads|N"),
        "kv",
        help="Number of groups of heads in a new block; a group shares B and C. kv: one group per "
        "key/value head. heads: one group per query head.",
    )
    ssm_expand: int = option(
        Integer(1, 2),
        1,
        help="Number of Mamba-2 heads per query head: 1 or 2. GGUF needs 2.",
    )
    d_state: int | None = option(
        Integer(1), None, help="State size per head.", default_text="head dim of the attention"
    )
    ssm_bias: bool = option(
        Flag(),
        True,
        help="Give the projections of new blocks biases. One of them keeps the gate open at the "
        "start. GGUF needs blocks without biases; `calibration` then fits the weights of the gate "
        "instead. Random blocks never have biases.",
    )
    format: str = option(
        Text("auto|NAME"),
        "auto",
        help="Architecture of the written checkpoint. auto: the first one of transformers that "
        "stores the result exactly, else hybridize.",
    )
    dtype: str = dtype_option("Dtype of the written weights; auto is the dtype of the source.")
    check: bool | None = option(
        Flag(),
        None,
        recorded=False,
        help="Compare the logits of MODEL and of the result in transformers and in hybridize, in "
        "float32, before the result gets its name. If they differ by more than rounding, nothing "
        "is written.",
        default_text="check, if the memory suffices",
    )
    max_shard_size: int = option(Size(), 5 * 10**9, help="Maximum size of a weight file.")
    allow_nonfinite: bool = option(
        Flag(), False, recorded=False, help="Accept NaN and infinity in the weights."
    )
    seed: int = seed_option()
    device: str = device_option()
    force: bool = force_option()
    dry_run: bool = dry_run_option()

    @property
    def from_hybrid(self) -> bool:
        """Whether new blocks come from the directory of another hybrid."""
        return self.init not in INITS

    @property
    def measures_swaps(self) -> bool:
        """Whether the attention blocks to keep are chosen by measuring swaps."""
        return self.select != "uniform"

    @override
    def check_options(self) -> None:
        if self.check and self.allow_nonfinite:
            raise InputError(
                "`check` needs finite logits, which `allow_nonfinite` does not promise; leave out "
                "one of them"
            )
        if self.measures_swaps:
            self._check_selection()
        elif self.calibration is not None and self.init != "attention":
            raise InputError(
                f"`calibration` fits blocks that start from attention; leave out `calibration` or "
                f"`init={self.init}`"
            )
        if not self.ssm_bias and self.init == "attention" and self.calibration is None:
            raise InputError(
                "`ssm_bias=False` needs `calibration`: without a bias, the weights of the gate are "
                "fitted on a text"
            )

    def _check_selection(self) -> None:
        if self.keep is not None or self.pattern is not None:
            raise InputError(
                f"`select={self.select}` chooses which blocks `attention` keeps; leave out `keep` "
                "and `pattern`"
            )
        if self.init == "random":
            raise InputError(
                f"`select={self.select}` cannot measure random blocks; give `init=attention` or "
                "the directory of a hybrid"
            )
        if self.calibration is None:
            self._set("calibration", "teacher")
