"""Measure the cost of FP8: each scheme, with and without unquantized first and last blocks.

    python benchmarks/quantization.py                            # the bundled checkpoint
    python benchmarks/quantization.py --model DIR --text FILE    # any other
    python benchmarks/quantization.py --synthetic                # size of a random 1B model

KL is the divergence of the quantized model from the original in float32, in nats per token. The
quantized model runs in bfloat16, as it would be served, and in float32, so that only the
quantization rounds. The accuracy is that on the bundled exam. All checkpoints are quantized from a
copy in bfloat16. If llm-compressor is installed (pip install llmcompressor), it quantizes the same
layers with the same schemes, and its checkpoints run with the same code. torchao's FP8 needs a GPU.
"""

import argparse
import importlib.util
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bundled import World, generate_prose, score
from measuring import argument_parser, machine, write_result
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hybridize import load_model, load_tokenizer, quantize
from hybridize.console import console
from hybridize.demo import CHECKPOINT, EXAM
from hybridize.errors import InputError
from hybridize.kernels import linear_kl_divergence
from hybridize.units import size_in_words

SCHEMES = {"fp8": "FP8_DYNAMIC", "fp8-tensor": "FP8", "fp8-block": "FP8_BLOCK"}
"""The names of the schemes in hybridize and in llm-compressor."""
CALIBRATION_TOKENS = 8192


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=CHECKPOINT,
        help="checkpoint directory; default: the bundled checkpoint",
    )
    parser.add_argument("--text", type=Path, help="text to measure on; default: generated")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens to measure on")
    parser.add_argument("--synthetic", action="store_true", help="measure size and memory only")
    parser.add_argument("--name", help="name of the result; default: the directory's name")
    options = parser.parse_args()
    if options.synthetic:
        synthetic(options)
        return
    text = options.text.read_text() if options.text else generate_prose(World(), 1_000_003, 200)
    calibration_text = text if options.text else generate_prose(World(), 7, 200)
    tokenizer = load_tokenizer(options.model)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, : options.tokens]
    sequences = ids[:, : ids.shape[1] // 256 * 256].view(-1, 256)
    original = load_model(options.model, dtype=torch.float32)
    rows = []

    def measure_one(what: str, directory: Path) -> None:
        console.message(what)
        rows.append(measure(what, directory, original, sequences, options.model == CHECKPOINT))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, calibration = folder / "bf16", folder / "text.txt"
        calibration.write_text(calibration_text)
        half = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
        half.save_pretrained(source)
        tokenizer.save_pretrained(source)
        measure_one("bfloat16", source)
        for scheme in SCHEMES:
            static = scheme == "fp8-tensor"
            try:
                for ends, label in ((None, "ends kept"), (0, "all blocks")):
                    done = quantize(
                        source, folder / "fp8", scheme=scheme, keep_bf16=ends, force=True,
                        calibration=str(calibration) if static else None,
                        calibration_tokens=CALIBRATION_TOKENS,
                    )  # fmt: skip
                    measure_one(f"{scheme}, {label}", done.output)
            except InputError as error:  # widths that are not multiples of 128
                console.message(f"skipped: {error}")
                continue
            if importlib.util.find_spec("llmcompressor"):
                theirs = folder / f"llm-compressor-{scheme}"
                calibration_ids = tokenizer(calibration_text).input_ids[:CALIBRATION_TOKENS]
                quantize_with_llm_compressor(source, theirs, scheme, calibration_ids)
                measure_one(f"{scheme}, all blocks, llm-compressor", theirs)
    report(rows, options)


def quantize_with_llm_compressor(source: Path, output: Path, scheme: str, ids: list[int]) -> None:
    """Quantize with llm-compressor, calibrated on the same text."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    pieces = [ids[start : start + 512] for start in range(0, len(ids), 512)]
    data = {"input_ids": pieces, "attention_mask": [[1] * len(piece) for piece in pieces]}
    calibrated: dict[str, Any] = {}
    if scheme == "fp8-tensor":
        calibrated = {
            "dataset": Dataset.from_dict(data), "max_seq_length": 512,
            "num_calibration_samples": len(pieces),
        }  # fmt: skip
    recipe = QuantizationModifier(targets="Linear", scheme=SCHEMES[scheme], ignore=["lm_head"])
    oneshot(model=model, recipe=recipe, **calibrated)
    model.save_pretrained(output, save_compressed=True)
    load_tokenizer(source).save_pretrained(output)


def measure(
    what: str, directory: Path, original: Any, sequences: torch.Tensor, with_exam: bool
) -> dict[str, Any]:
    """Return KL divergences, size and exam score of a checkpoint."""
    half = load_model(directory, dtype=torch.bfloat16)
    row: dict[str, Any] = {
        "what": what,
        "kl": kl_of(half, original, sequences),
        "kl_float32": kl_of(load_model(directory, dtype=torch.float32), original, sequences),
        "bytes": size_of(directory),
    }
    if with_exam:
        row["exam"] = score(half, load_tokenizer(CHECKPOINT), EXAM)["all"]
    return row


@torch.no_grad()
def kl_of(model: Any, original: Any, sequences: torch.Tensor) -> float:
    """Return the KL divergence from the original, in nats per token."""
    total = 0.0
    for batch in sequences.split(8):
        hidden, original_hidden = (
            m.model(batch, use_cache=False).last_hidden_state.flatten(0, 1).float()
            for m in (model, original)
        )
        heads = [m.lm_head.weight.float() for m in (model, original)]
        total += len(batch) * float(
            linear_kl_divergence(hidden, heads[0], original_hidden, heads[1])
        )
    return total / len(sequences)


def synthetic(options: argparse.Namespace) -> None:
    """Quantize a random model of 1.03 billion parameters, nearly all of them in linear layers."""
    shape = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        LlamaForCausalLM(shape).save_pretrained(folder / "bf16")
        torch.set_default_dtype(before)
        whole = size_of(folder / "bf16")
        for ends in (0, 1, None):
            started = time.perf_counter()
            quantize(folder / "bf16", folder / "fp8", keep_bf16=ends, force=True)
            rows.append({
                "keep_bf16": "default (4)" if ends is None else ends,
                "bytes": size_of(folder / "fp8"),
                "share": size_of(folder / "fp8") / whole,
                "seconds": time.perf_counter() - started,
            })  # fmt: skip
    console.table(
        ["unquantized first and last blocks, of 44", "size", "relative to bfloat16", "seconds"],
        [
            (row["keep_bf16"], size_in_words(row["bytes"]), f"{row['share']:.1%}",
             f"{row['seconds']:.1f}")
            for row in rows
        ],
        title=f"A random Llama of {whole / 2e9:.2f} billion parameters, in FP8",
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write(options, "synthetic-1b", {"bytes": whole, "peak_rss": peak, "rows": rows})


def size_of(directory: Path) -> int:
    """Return the size of a checkpoint's weights in bytes."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    name = options.name or options.model.resolve().name
    exam = "exam" in rows[0]
    console.table(
        ["weights", "KL in bfloat16", "KL in float32", "size", *(["bundled exam"] if exam else [])],
        [
            (
                row["what"],
                f"{row['kl']:.5f}",
                f"{row['kl_float32']:.5f}",
                f"{size_in_words(row['bytes'])} ({row['bytes'] / rows[0]['bytes']:.0%})",
                *([f"{row['exam']:.1%}"] if exam else []),
            )
            for row in rows
        ],
        title=f"{name} in FP8",
        caption="KL from the original, which runs in float32, in nats per token; the quantized "
        "model runs in bfloat16 or in float32. Size: relative to bfloat16.",
    )
    write(options, name, {"settings": {"tokens": options.tokens}, "rows": rows})


def write(options: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    """Write the results and the machine to a file."""
    described = machine(torch.device("cpu"))
    result = {"benchmark": "quantization", "model": name, "machine": described, **found}
    write_result(options.output, f"quantization-{name}", result)


if __name__ == "__main__":
    main()
