"""Measure the memory and the speed of packing text into sequences, by the number of tokens.

Packs random documents in three ways, each in its own process:

- "in memory": all tokens in one array and then in two int32 tensors, one safetensors file at the
  end. This is how texts were packed before they were written in shards.
- "shards": what `distill` does with tokenized documents.
- "shards, validation": the same with a held-out part, for which every document is hashed.

    python benchmarks/packing.py
    python benchmarks/packing.py --tokens 100000 1000000

The documents are token ids, so the tokenizer is not measured. The memory that a process has after
its imports is subtracted from its peak.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import argument_parser, machine, memory_now, memory_peak, write_result
from safetensors.torch import save_file

from hybridize.console import console
from hybridize.data.mixing import Mixture, TokenSource
from hybridize.data.token_shards import TRAINING, VALIDATION, Index, ShardWriter
from hybridize.units import size_in_words

LENGTH = 512
VOCABULARY = 49_152
MEAN_DOCUMENT = 400
HELD_OUT = 16


def documents(tokens: int, first: int = 0) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Yield random documents of 1 to 799 tokens; the position gives a document's number."""
    count = tokens // MEAN_DOCUMENT
    lengths = np.random.default_rng(0).integers(1, 2 * MEAN_DOCUMENT, count, dtype=np.int32)
    rng = np.random.default_rng(1)
    for number, length in enumerate(lengths):
        ids = rng.integers(0, VOCABULARY, int(length), dtype=np.int32)
        if number >= first:
            yield (number, 0), ids


def in_memory(tokens: int, folder: Path) -> None:
    """Pack as before there were shards."""
    ids, starts = array("i"), array("q")
    for _, document in documents(tokens):
        starts.append(len(ids))
        ids.extend(document.tolist())
    count = len(ids) // LENGTH * LENGTH
    flat = torch.tensor(ids[:count], dtype=torch.int32).view(-1, LENGTH)
    is_start = torch.zeros(count, dtype=torch.int32)
    offsets = torch.tensor(starts, dtype=torch.int64)
    is_start[offsets[offsets < count]] = 1
    is_start = is_start.view(-1, LENGTH)
    is_start[:, 0] = 0
    seq_idx = is_start.cumsum(1, dtype=torch.int32)
    save_file({"ids": flat, "seq_idx": seq_idx.contiguous()}, folder / "packed.safetensors")


def shards(tokens: int, folder: Path, held_out: int = 0) -> None:
    """Pack into shards."""
    source = TokenSource(
        "random", None, lambda position: documents(tokens, position[0] if position else 0)
    )
    mixture = Mixture([source], LENGTH, 0)
    writer = ShardWriter(folder, Index("random", LENGTH, VOCABULARY))
    for sequence in mixture.hold_out(held_out):
        writer.add(sequence)
    writer.write(VALIDATION, mixture.state())
    for sequence in mixture:
        if writer.add(sequence):
            writer.write(TRAINING, mixture.state())
    writer.write(TRAINING, None, complete=True)


CASES = {
    "in memory": in_memory,
    "shards": shards,
    "shards, validation": lambda tokens, folder: shards(tokens, folder, HELD_OUT),
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[10**5, 10**6, 10**7], help="numbers of tokens"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.case, options.tokens[0])))
        return
    rows = [
        {"case": case, "tokens": tokens} | in_process(case, tokens)
        for tokens in options.tokens
        for case in CASES
    ]
    console.table(
        ["packing", "tokens", "peak", "bytes per token", "on disk", "tokens/s"],
        [
            (
                row["case"],
                f"{row['tokens']:,}",
                size_in_words(row["peak_bytes"]),
                f"{row['peak_bytes'] / row['tokens']:.1f}",
                size_in_words(row["disk_bytes"]),
                f"{row['tokens'] / row['seconds']:,.0f}",
            )
            for row in rows
        ],
        caption=f"Documents of {MEAN_DOCUMENT} tokens on average, sequences of {LENGTH} tokens, a "
        f"vocabulary of {VOCABULARY:,}. Peak memory beside that of the imports.",
    )
    result = {
        "benchmark": "packing",
        "machine": machine(torch.device("cpu")),
        "settings": {
            "length": LENGTH,
            "vocabulary": VOCABULARY,
            "mean_document": MEAN_DOCUMENT,
            "held_out_sequences": HELD_OUT,
        },
        "rows": rows,
    }
    write_result(options.output, "packing", result)


def in_process(case: str, tokens: int) -> dict[str, Any]:
    """Measure a case in its own process."""
    console.message(f"{case}: {tokens:,} tokens")
    command = [sys.executable, __file__, f"--case={case}", f"--tokens={tokens}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(case: str, tokens: int) -> dict[str, Any]:
    """Return peak memory, size on disk and time of a case."""
    with tempfile.TemporaryDirectory() as name:
        # A small run first: it imports what the case needs.
        CASES[case](20 * HELD_OUT * LENGTH, Path(name))
        for path in Path(name).iterdir():
            path.unlink()
        before, started = memory_now(), time.perf_counter()
        CASES[case](tokens, Path(name))
        return {
            "seconds": time.perf_counter() - started,
            "peak_bytes": max(0, memory_peak() - before),
            "disk_bytes": sum(path.stat().st_size for path in Path(name).iterdir()),
        }


if __name__ == "__main__":
    main()
