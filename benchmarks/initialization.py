"""Compare initializations of new Mamba-2 blocks, before any training.

Converts a checkpoint with each initialization. Reports the KL divergence of the result from the
original on a text, in nats per token:

    python benchmarks/initialization.py                                # the bundled checkpoint
    python benchmarks/initialization.py --model DIR --text FILE        # any other

"zero output" sets the output of the new blocks to zero. A useful initialization must be better.
Each row below "attention" changes one constant of `hybridize.conversion.first_values`.
"""

import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch
from bundled import World, generate_prose
from measuring import argument_parser, write_result

from hybridize import convert
from hybridize.checkpoints.load import load_model, load_tokenizer
from hybridize.console import console
from hybridize.conversion import first_values
from hybridize.demo import CHECKPOINT
from hybridize.modeling.layers.sizes import MambaSizes

VARIANTS: dict[str, dict[str, float]] = {
    "attention": {},
    "scores without an offset": {"_SCORE_OFFSET": 0.0},
    "score offset 2": {"_SCORE_OFFSET": 2.0},
    "values with RMS 1": {"_VALUE_RMS": 1.0},
    "longest memory 16 tokens": {"_LONGEST_MEMORY": 16.0},
    "longest memory 128 tokens": {"_LONGEST_MEMORY": 128.0},
    "longest memory 1024 tokens": {"_LONGEST_MEMORY": 1024.0},
    "output factor 1": {"_OUTPUT_SHRINK": 1.0},
    "output factor 0.25": {"_OUTPUT_SHRINK": 0.25},
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=CHECKPOINT,
        help="checkpoint directory; default: the bundled checkpoint",
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="text to measure on; default: generated, and unknown to the bundled checkpoint",
    )
    parser.add_argument(
        "--attention", default="1,25%,50%", help="attention blocks to keep, separated by commas"
    )
    parser.add_argument("--seq-len", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--sequences", type=int, default=16, help="number of sequences")
    parser.add_argument("--name", help="name of the result; default: the model's directory name")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    text = (
        options.text.read_text("utf-8") if options.text else generate_prose(World(), 1_000_003, 400)
    )
    ids = load_tokenizer(options.model)(text, return_tensors="pt").input_ids[0]
    count = min(options.sequences, len(ids) // options.seq_len)
    ids = ids[: count * options.seq_len].view(count, options.seq_len)
    expected = load_model(options.model, dtype=torch.float32)(ids).logits.log_softmax(-1)

    shares = options.attention.split(",")
    divergences: dict[str, list[float]] = {}
    for share in shares:
        for name, constants in VARIANTS.items():
            divergences.setdefault(name, []).append(
                divergence(options.model, share, "attention", constants, ids, expected)
            )
        for name, init, zeroed in (("random", "random", False), ("zero output", "attention", True)):
            divergences.setdefault(name, []).append(
                divergence(options.model, share, init, {}, ids, expected, zeroed=zeroed)
            )
    name = options.name or options.model.resolve().name
    console.table(
        ["initialization", *(f"{share} kept" for share in shares)],
        [(row, *(f"{value:.3f}" for value in values)) for row, values in divergences.items()],
        title=f"KL from the original, nats per token: {name}, {ids.numel():,} tokens",
    )
    result = {
        "benchmark": "initialization",
        "model": name,
        "tokens": ids.numel(),
        "seq_len": options.seq_len,
        "versions": {name: version(name) for name in ("hybridize", "torch")},
        "kept": shares,
        "kl_nats_per_token": divergences,
    }
    write_result(options.output, f"initialization-{name}", result)


def divergence(
    model: Path,
    share: str,
    init: str,
    constants: dict[str, float],
    ids: torch.Tensor,
    expected: torch.Tensor,
    *,
    zeroed: bool = False,
) -> float:
    """Convert with other constants of the initialization; return the mean KL divergence.

    ``zeroed`` sets the outputs of the new blocks to zero.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as changed:
        for constant, value in constants.items():
            changed.enter_context(patch.object(first_values, constant, value))
        convert(model, Path(folder) / "out", attention=share, init=init, dtype="float32")
        student = load_model(Path(folder) / "out")
    if zeroed:
        before = load_model(model).config.blocks
        for block, old in zip(student.model.blocks, before, strict=True):
            if not isinstance(old, MambaSizes) and hasattr(block.mixer, "A_log"):
                block.mixer.out_proj.weight.zero_()
                if block.mixer.out_proj.bias is not None:
                    block.mixer.out_proj.bias.zero_()
    found = student(ids).logits.log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


if __name__ == "__main__":
    main()
