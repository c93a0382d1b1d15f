"""Measure the memory and time of converting a large checkpoint, compared with copying it.

Writes a synthetic Llama checkpoint in shards, then copies and converts it several times,
alternately. Reports the time of both (the copy with fsync) and the conversion's peak resident
memory.

    python benchmarks/convert_streaming.py                 # 8 GB in 5 shards, needs 25 GB of disk
    python benchmarks/convert_streaming.py --gigabytes 1   # a short run

Bounds: at most 1 GiB plus twice the largest tensor, and at most 1.5 times the time of the copy.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from measuring import argument_parser, write_result

from hybridize.checkpoints import CheckpointWriter, TensorSpec
from hybridize.checkpoints.formats import FORMATS
from hybridize.console import console
from hybridize.units import size_in_words

HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 4096, 32, 8, 14336, 128256  # as in Llama-3-8B
NOISE_LENGTH = 64 << 20  # random weights that are generated; all tensors repeat them


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=8, help="size of the checkpoint")
    parser.add_argument("--shards", type=int, default=5, help="number of weight files")
    parser.add_argument("--rounds", type=int, default=3, help="measured copies and conversions")
    parser.add_argument("--pause", type=float, default=8, help="seconds to wait before each run")
    parser.add_argument(
        "--work-dir", type=Path, help="directory on the disk to measure; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        source = Path(folder) / "source"
        largest = write_source(source, options.gigabytes, options.shards)
        rounds = [measure(source, Path(folder), options.pause) for _ in range(options.rounds)]
    report(rounds, largest, options)


def write_source(directory: Path, gigabytes: float, shards: int) -> int:
    """Write the checkpoint; return the size of its largest tensor in bytes."""
    llama = FORMATS["llama"]
    layer = 2 * (HIDDEN * HIDDEN * (2 + 2 * KV_HEADS // HEADS) + 3 * HIDDEN * FFN)
    tables = 2 * 2 * VOCAB * HIDDEN
    layers = max(4, round((gigabytes * 1e9 - tables) / layer))
    raw = {
        "model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": FFN, "vocab_size": VOCAB,
        "num_hidden_layers": layers, "rope_theta": 500000.0, "dtype": "bfloat16",
        "max_position_embeddings": 8192,
    }  # fmt: skip
    entries = llama.tensor_map(llama.to_spec(dict(raw)))
    specs = [TensorSpec(entry.disk, entry.shape, "bfloat16") for entry in entries]
    total = sum(spec.nbytes for spec in specs)
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(NOISE_LENGTH).normal_(0, 0.02, generator=generator).to(torch.bfloat16)
    limit = total // shards + max(spec.nbytes for spec in specs) // 2
    with CheckpointWriter(directory, specs, config=raw, max_shard_size=limit) as writer:
        for spec in specs:
            count = spec.nbytes // 2
            flat = noise.repeat(-(-count // NOISE_LENGTH))[:count]
            writer.add(spec.name, flat.reshape(spec.shape))
        writer.finish({"command": "synthetic", "source": {"name": "random"}})
    os.sync()
    return max(spec.nbytes for spec in specs)


def measure(source: Path, folder: Path, pause: float) -> dict[str, float]:
    """Copy and convert once each, with a pause before each.

    The pause keeps pending writes and freed memory of one run from affecting the other.
    """
    copied, converted = folder / "copy", folder / "converted"
    time.sleep(pause)
    started = time.perf_counter()
    shutil.copytree(source, copied)
    for path in (*copied.iterdir(), copied):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    copy_seconds = time.perf_counter() - started
    shutil.rmtree(copied)

    command = [sys.executable, "-m", "hybridize", "convert", str(source), "-o", str(converted),
               "--no-check"]  # fmt: skip
    os.sync()
    time.sleep(pause)
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    convert_seconds = time.perf_counter() - started
    if status:
        raise SystemExit("error: the conversion failed")
    written = sum(path.stat().st_size for path in converted.iterdir())
    shutil.rmtree(converted)
    return {
        "copy_s": copy_seconds,
        "convert_s": convert_seconds,
        "ratio": convert_seconds / copy_seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "source_bytes": sum(path.stat().st_size for path in source.iterdir()),
        "written_bytes": written,
    }


def report(rounds: list[dict[str, float]], largest: int, options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    median = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    bound = (1 << 30) + 2 * largest
    rows = [
        ("source", size_in_words(median["source_bytes"]), ""),
        ("written", size_in_words(median["written_bytes"]), ""),
        ("copy with fsync", f"{median['copy_s']:.1f} s", ""),
        ("convert", f"{median['convert_s']:.1f} s", ""),
        ("convert / copy", f"{median['ratio']:.2f}", "at most 1.50"),
        ("peak memory", size_in_words(median["peak_bytes"]), f"at most {size_in_words(bound)}"),
        ("largest tensor", size_in_words(largest), ""),
    ]
    console.table(["streaming conversion", f"median of {len(rounds)}", "bound"], rows)
    result = {
        "benchmark": "convert_streaming",
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": {name: version(name) for name in ("hybridize", "torch", "safetensors")},
        "settings": {
            "gigabytes": options.gigabytes,
            "shards": options.shards,
            "pause_seconds": options.pause,
        },
        "largest_tensor_bytes": largest,
        "memory_bound_bytes": bound,
        "median": median,
        "rounds": rounds,
    }
    write_result(options.output, "convert_streaming", result)


if __name__ == "__main__":
    main()
