"""The options of `hybridize.quantize`."""

from dataclasses import dataclass

from hybridize.compress.quantize.kept_blocks import match_keep
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.option_types import Integer, Location, NameIn, ParsedText, Size
from hybridize.options import (
    Config,
    device_option,
    dry_run_option,
    force_option,
    option,
    seed_option,
)


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(Config):
    """The scheme, the blocks that are not quantized, and the calibration text."""

    scheme: str = option(
        NameIn(lambda: SCHEMES),
        "fp8",
        help=f"Granularity of the scales. {SCHEMES.help()}.",
    )
    keep_bf16: str | None = option(
        ParsedText("N|auto:N|auto:PERCENT%", match_keep),
        None,
        help="Blocks that are not quantized. N: the first N and the last N. auto: the N blocks, or "
        "PERCENT% of the blocks, whose quantization raises the KL divergence most; the whole model "
        "must fit in memory.",
        default_text="4, fewer for shallow models",
    )
    calibration: str | None = option(
        Location("FILE|DIR|DATASET|teacher"),
        None,
        help="Text for fp8-tensor and for `keep_bf16` with auto. teacher: MODEL generates the "
        "text, with the whole model in memory.",
        default_text="teacher if text is needed",
    )
    calibration_tokens: int = option(
        Integer(1), 8192, help="Number of tokens of the calibration text to use."
    )
    max_shard_size: int = option(Size(), 5 * 10**9, help="Maximum size of a weight file.")
    seed: int = seed_option()
    device: str = device_option()
    force: bool = force_option()
    dry_run: bool = dry_run_option()

    @property
    def measures(self) -> bool:
        """Whether the plan depends on a run of the model on the calibration text."""
        automatic = self.keep_bf16 is not None and str(self.keep_bf16).startswith("auto:")
        return SCHEMES[self.scheme].quantization.static or automatic
