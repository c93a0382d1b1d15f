"""What FP8 costs: each scheme, with the first and last blocks kept and without.

    python benchmarks/quantisation.py                                # the bundled checkpoint
    python benchmarks/quantisation.py --model DIR --text FILE        # any other

KL is that of the quantised model's next-token distribution from the model's own in float32, in
nats per token; the exam is the bundled checkpoint's. The model in bfloat16 stands beside them:
what is not much worse than that is free.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import machine

from hybridize import load_model, load_tokenizer, quantize
from hybridize.console import console, size_in_words
from hybridize.demo import CHECKPOINT, EXAM
from hybridize.demo.score import score
from hybridize.demo.world import World
from hybridize.kernels import linear_kl_divergence

SCHEMES = ("fp8", "fp8-tensor", "fp8-block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--text", type=Path, help="to measure on; the bundled world's")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--name", help="of the result; the model's directory name if not given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    text = options.text.read_text() if options.text else World().prose(1_000_003, 200)
    ids = load_tokenizer(options.model)(text, return_tensors="pt").input_ids[:, : options.tokens]
    rows_of_text = ids[:, : ids.shape[1] // 256 * 256].view(-1, 256)
    original = load_model(options.model, dtype=torch.float32)
    rows = [measure("bfloat16", load_model(options.model, dtype=torch.bfloat16), original,
                    rows_of_text, options, size_of(options.model))]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "text.txt"
        calibration.write_text(World().prose(7, 200) if options.text is None else text)
        for scheme in SCHEMES:
            for ends in (None, 0):
                console.message(f"{scheme}, {'ends kept' if ends is None else 'all blocks'}")
                done = quantize(
                    options.model,
                    Path(folder) / "fp8",
                    scheme=scheme,
                    keep_bf16=ends,
                    calibration=str(calibration) if scheme == "fp8-tensor" else None,
                    force=True,
                )
                what = f"{scheme}, {'ends kept' if ends is None else 'all blocks'}"
                model = load_model(done.output, dtype=torch.bfloat16)
                nbytes = size_of(done.output)
                rows.append(measure(what, model, original, rows_of_text, options, nbytes))
    report(rows, options)


@torch.no_grad()
def measure(
    what: str,
    model: Any,
    original: Any,
    rows: torch.Tensor,
    options: argparse.Namespace,
    nbytes: int,
) -> dict[str, Any]:
    """Return a model's figures."""
    total = 0.0
    for batch in rows.split(8):
        got, wanted = (
            m.model(batch, use_cache=False).last_hidden_state.flatten(0, 1).float()
            for m in (model, original)
        )
        total += len(batch) * float(
            linear_kl_divergence(
                got, model.lm_head.weight.float(), wanted, original.lm_head.weight.float()
            )
        )
    row: dict[str, Any] = {"what": what, "kl": total / len(rows), "bytes": nbytes}
    if options.model == CHECKPOINT:
        row["exam"] = score(model, load_tokenizer(options.model), EXAM)["all"]
    return row


def size_of(directory: Path) -> int:
    """Return the bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the figures down."""
    name = options.name or options.model.resolve().name
    exam = "exam" in rows[0]
    console.table(
        ["weights", "KL, nats/token", "size", *(["exam"] if exam else [])],
        [
            (
                row["what"],
                f"{row['kl']:.5f}",
                f"{size_in_words(row['bytes'])} ({row['bytes'] / rows[0]['bytes']:.0%})",
                *([f"{row['exam']:.1%}"] if exam else []),
            )
            for row in rows
        ],
        title=f"{name} in FP8",
        caption="KL from the model in float32; size beside bfloat16.",
    )
    result = {
        "benchmark": "quantisation",
        "model": name,
        "machine": machine(torch.device("cpu")),
        "settings": {"tokens": options.tokens},
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"quantisation-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.message(f"written: {path}")


if __name__ == "__main__":
    main()
