"""Compare ways to calibrate new blocks: error of the blocks, KL of the hybrid, and cost.

Converts a checkpoint in each way. Reports the mean held-out error of the blocks, the KL divergence
of the result from the original on another text, and the time of the calibration:

    python benchmarks/calibration.py                                   # the bundled checkpoint
    python benchmarks/calibration.py --model DIR --text FILE --held-out FILE

Results are written as they come, and the same command continues after an interruption.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bundled import World, generate_prose
from measuring import argument_parser, machine, write_result

from hybridize import convert
from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.conversion.block_fit import Batch, Batches, BlockFit
from hybridize.conversion.calibration import Calibrator
from hybridize.conversion.head_trials import HeadTrials
from hybridize.conversion.moments import Moments
from hybridize.data.calibration import CALIBRATION_LENGTH
from hybridize.data.kl import measure_kl
from hybridize.data.load_text import load_packed_dataset
from hybridize.demo import CHECKPOINT
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.option_types import Count


@contextmanager
def without_choice() -> Iterator[None]:
    """Keep the first lags, memories and scales of the heads."""
    with patch.object(HeadTrials, "choose", lambda _: None):
        yield


@contextmanager
def without_first_tokens() -> Iterator[None]:
    """Fit all tokens but the first of each sequence, to which many heads attend (a sink)."""

    def moments(self: BlockFit, batches: Batches) -> Moments:
        total = Moments(intercept=self._mixer.sizes.proj_bias)
        for batch in batches():
            features = self._mixer.features(self._mixer.in_proj(batch.input), batch.context)
            output = self._attention(batch.input, batch.context)
            total.add(features[:, 1:].flatten(0, 1), output[:, 1:].flatten(0, 1))
        return total

    with patch.object(BlockFit, "_moments", moments):
        yield


@contextmanager
def relative_to_the_stream() -> Iterator[None]:
    """Divide the errors of each token by the size of the residual stream to which they are added.

    The next block normalizes the stream, so an error matters less where the stream is large.
    """
    weights: list[torch.Tensor] = []  # of the batch in work
    text, add = Calibrator._text, Moments.add

    def weighted_text(self: Calibrator, norm: RMSNorm, held_out: bool) -> Iterator[Batch]:
        parts = (part for _, part in self._batches)
        streams = (x for x, part in zip(self._stream, parts, strict=True) if part == held_out)
        for stream, batch in zip(streams, text(self, norm, held_out), strict=True):
            weights[:] = [stream.square().mean(-1).rsqrt().flatten()[:, None]]
            yield batch

    def weighted_add(self: Moments, x: torch.Tensor, y: torch.Tensor) -> None:
        if x.ndim > 2:  # a trial of the heads
            return add(self, x, y)
        x = torch.nn.functional.pad(x, (0, self._intercepts), value=1.0)
        intercepts, self._intercepts = self._intercepts, 0
        add(self, weights[0] * x, weights[0] * y)
        self._intercepts = intercepts

    changed = patch.object(Calibrator, "_text", weighted_text)
    with changed, patch.object(Moments, "add", weighted_add):
        yield


@dataclass(frozen=True)
class Variant:
    """One way to calibrate.

    Attributes:
        options: options of `hybridize.convert` that differ from the defaults.
        tokens: the factor of the number of calibration tokens.
        state_factor: the state size as a multiple of the head dim.
        change: a context manager in which `convert` works differently.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    tokens: float = 1.0
    state_factor: int = 1
    change: Any = nullcontext


VARIANTS = {
    "as by default": Variant(),
    "a quarter of the tokens": Variant(tokens=0.25),
    "four times the tokens": Variant(tokens=4),
    "lags, memories and scales not chosen": Variant(change=without_choice),
    "--ssm-groups heads": Variant({"ssm_groups": "heads"}),
    "--ssm-groups 1": Variant({"ssm_groups": "1"}),
    "--ssm-expand 2": Variant({"ssm_expand": 2}),
    "twice the state size": Variant(state_factor=2),
    "without the first token of each sequence": Variant(change=without_first_tokens),
    "errors relative to the residual stream": Variant(change=relative_to_the_stream),
    "no calibration": Variant({"calibration": None}),
}


def main() -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=CHECKPOINT, help="default: the bundled checkpoint")
    add("--text", type=Path, help="text to fit; default: generated for the bundled checkpoint")
    add("--held-out", type=Path, help="text for the KL; default: generated")
    add("--attention", default="25%,50%", help="attention blocks to keep, separated by commas")
    add("--calibration-tokens", type=Count().convert, default=8192, help="tokens to fit")
    add("--kl-tokens", type=Count().convert, default=4096, help="tokens for the KL")
    add("--name", help="name of the result; default: the model's directory name")
    options = parser.parse_args()
    name = options.name or options.model.resolve().name
    path = options.output / f"calibration-{name}.json"
    result = {
        "benchmark": "calibration",
        "settings": {
            "model": name,
            "calibration_tokens": options.calibration_tokens,
            "kl_tokens": options.kl_tokens,
        },
        "machine": machine(torch.device("cpu")),
        "versions": {package: version(package) for package in ("hybridize", "torch")},
        "rows": {},
    }
    if path.exists() and (before := json.loads(path.read_text()))["settings"] == result["settings"]:
        result = before
    with tempfile.TemporaryDirectory() as folder:
        measure_all(options, Path(folder), result)
    show(result)


def measure_all(options: argparse.Namespace, folder: Path, result: dict[str, Any]) -> None:
    """Measure all variants that are not in the result yet."""
    for part, number in (("text", 1), ("held_out", 2)):
        if getattr(options, part) is None:
            setattr(options, part, folder / f"{part}.txt")
            words = generate_prose(World(), 1_000_000 + number, 4000)
            (folder / f"{part}.txt").write_text(words, "utf-8")
    original = load_model(options.model, dtype=torch.float32)
    text = load_packed_dataset(
        [str(options.held_out)],
        model=options.model,
        length=min(CALIBRATION_LENGTH, original.config.max_position_embeddings),
        tokens=options.kl_tokens,
        seed=0,
        device=torch.device("cpu"),
    )
    for share in options.attention.split(","):
        for label, variant in VARIANTS.items():
            row = f"{share}: {label}"
            if row in result["rows"]:
                continue
            console.message(row)
            arguments = {
                "attention": share,
                "calibration": str(options.text),
                "calibration_tokens": int(options.calibration_tokens * variant.tokens),
                "d_state": variant.state_factor * original.config.head_dim,
                **variant.options,
            }
            with variant.change():
                converted = convert(options.model, folder / "out", force=True, **arguments)
            errors, cost = converted.errors, converted.calibration
            result["rows"][row] = {
                "share": share,
                "variant": label,
                "tokens": arguments["calibration_tokens"] if arguments["calibration"] else 0,
                "error": sum(error.after for error in errors) / len(errors) if errors else None,
                "kl": measure_kl(load_model(folder / "out", dtype=torch.float32), original, text),
                "forwards": cost and cost.forwards,
                "seconds": cost and cost.seconds,
            }
            write_result(options.output, f"calibration-{result['settings']['model']}", result)


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    console.table(
        ["attention", "calibration", "tokens", "error of the blocks", "KL", "forwards", "seconds"],
        [
            (
                row["share"],
                row["variant"],
                f"{row['tokens']:,}",
                "" if row["error"] is None else f"{row['error']:.3f}",
                f"{row['kl']:.3f}",
                "" if row["forwards"] is None else f"{row['forwards']:.1f}",
                "" if row["seconds"] is None else f"{row['seconds']:.0f}",
            )
            for row in result["rows"].values()
        ],
        title=f"Calibration of {result['settings']['model']}",
        caption="Error of the blocks: mean over blocks, held-out text. KL: nats per token. "
        "Forwards: the time in forward passes over the same text.",
    )


if __name__ == "__main__":
    main()
