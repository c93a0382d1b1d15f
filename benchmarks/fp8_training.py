"""Compare training in FP8 with quantizing after training in float32, on the same hybrid.

    python benchmarks/fp8_training.py
    python benchmarks/fp8_training.py --tokens 1000000

The bundled checkpoint with two of eight attention blocks is aligned, and then distilled for the
same number of tokens in float32 and in FP8. Both results are quantized in the same way. The KL
divergence from the original is measured on text that was not used for training.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bundled import Settings, World, generate_documents, generate_prose
from measuring import argument_parser, write_result

from hybridize import convert, distill, load_model, load_tokenizer, quantize
from hybridize.console import console
from hybridize.data.kl import kl_from_hidden
from hybridize.demo import CHECKPOINT

SCHEMES: tuple[tuple[str, int | None], ...] = (("fp8", None), ("fp8", 0), ("fp8-tensor", None))
"""Schemes with ``keep_bf16``: None is the default; 0 quantizes all blocks."""


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=250_000, help="training tokens of each stage")
    parser.add_argument(
        "--train", default="all", choices=("mixers", "all"), help="the parameters to train"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    report(rows, options)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Distill the same hybrid in float32 and for each scheme, and quantize the results."""
    text = folder / "world.jsonl"
    documents = generate_documents(World(), 77, Settings().stages[-1].mix)
    text.write_text("\n".join(json.dumps({"text": one}) for one in islice(documents, 6_000)))
    training: dict[str, Any] = {
        "teacher": CHECKPOINT, "data": (str(text),), "tokens": options.tokens, "batch_size": 8,
        "validate_every": 10**6,
    }  # fmt: skip
    convert(CHECKPOINT, folder / "all", attention="0%", calibration=text)
    distill(folder / "all", folder / "aligned", stages=("align",), **training)
    convert(CHECKPOINT, folder / "start", attention=2, select="sensitivity",
            init=folder / "aligned", calibration=text)  # fmt: skip
    plain = folder / "plain"
    distill(folder / "start", plain, stages=("kl",), train=options.train, **training)
    rows = []
    for scheme, keep in SCHEMES:
        output = folder / f"{scheme}-{keep}"
        distill(folder / "start", output, stages=("kl",), train=options.train, fp8=scheme,
                keep_bf16=keep, **training)  # fmt: skip
        calibration = str(text) if scheme == "fp8-tensor" else None
        row: dict[str, Any] = {
            "scheme": scheme,
            "keep_bf16": keep,
            "unquantized": divergence(plain),
        }
        for name, trained in (("trained_in_float32", plain), ("trained_in_fp8", output)):
            quantized = quantize(trained, folder / "quantized", scheme=scheme, keep_bf16=keep,
                                 force=True, calibration=calibration)  # fmt: skip
            row[name] = divergence(quantized.output)
        rows.append(row)
    return rows


@torch.no_grad()
def divergence(directory: Path) -> float:
    """Return the KL divergence from the original on held-out text, in nats per token."""
    model, original = (load_model(d, dtype=torch.float32) for d in (directory, CHECKPOINT))
    ids = load_tokenizer(CHECKPOINT)(
        generate_prose(World(), 1_000_003, 200), return_tensors="pt"
    ).input_ids
    total, batches = 0.0, ids[:, : ids.shape[1] // 256 * 256].view(-1, 256).split(8)
    for batch in batches:
        hidden, original_hidden = (
            m.model(batch, use_cache=False).last_hidden_state for m in (model, original)
        )
        kl = kl_from_hidden(model, hidden, original, original_hidden)
        total += len(batch) * float(kl)
    return total / sum(map(len, batches))


COLUMNS = ("unquantized", "trained_in_float32", "trained_in_fp8")


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    console.table(
        [
            "scheme",
            "first and last blocks",
            "not quantized",
            "trained in float32",
            "trained in FP8",
        ],
        [
            (
                row["scheme"],
                "kept in bfloat16" if row["keep_bf16"] is None else "quantized",
                *(f"{row[name]:.4f}" for name in COLUMNS),
            )
            for row in rows
        ],
        title=f"KL from the original, nats per token, after {options.tokens:,} training tokens",
        caption="Not quantized: the model trained in float32, before quantization.",
    )
    result = {
        "benchmark": "fp8_training",
        "settings": {"tokens": options.tokens, "train": options.train},
        "versions": {name: version(name) for name in ("hybridize", "torch")},
        "rows": rows,
    }
    write_result(options.output, "fp8_training", result)


if __name__ == "__main__":
    main()
