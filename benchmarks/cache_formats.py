"""Measure the memory and the quality of a hybrid whose cache is stored in fewer bits.

    make demo                               # writes the hybrid
    python benchmarks/cache_formats.py
    python benchmarks/cache_formats.py --model DIR --perplexity FILE

Quality is the accuracy on the bundled exam and on its recall questions, and the perplexity. The
model reads all texts through the cache, 64 tokens at a time, so that the lower precision has its
effect. The sizes are those of a cache with ``--context`` tokens.
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bundled import RECALL_SUBJECTS, World, generate_prose
from measuring import accuracy, argument_parser, write_result

from hybridize import evaluate, load_model
from hybridize.console import console
from hybridize.demo import EXAM
from hybridize.modeling.cache.format import CacheFormat
from hybridize.units import size_in_words

FORMATS = [("auto", "auto"), ("fp8", "auto"), ("auto", "bfloat16"), ("auto", "fp8"), ("fp8", "fp8")]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path("demo-out/attention-2-distilled"), help="the hybrid"
    )
    parser.add_argument("--perplexity", type=Path, help="held-out text; default: generated")
    parser.add_argument("--context", type=int, default=512, help="tokens in the cache")
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"{options.model}: no such directory; `make demo` makes one, or give --model")
    with tempfile.TemporaryDirectory() as folder:
        prose = options.perplexity or Path(folder) / "prose.txt"
        if options.perplexity is None:
            prose.write_text(generate_prose(World(), 1_000_003, 60))
        rows = [measure(options, CacheFormat(*names), prose) for names in FORMATS]
    report(rows, options)


def measure(options: argparse.Namespace, cache_format: CacheFormat, prose: Path) -> dict[str, Any]:
    """Return memory and quality of one cache format."""
    console.message(f"keys and values: {cache_format.kv}, states: {cache_format.ssm}")
    scored = evaluate(
        options.model, tasks=("mmlu",), mmlu_dir=EXAM, perplexity=prose,
        kv_cache_dtype=cache_format.kv, ssm_cache_dtype=cache_format.ssm,
    ).models[0]  # fmt: skip
    model = load_model(options.model, dtype=torch.float32, cache_format=cache_format)
    ids = torch.zeros(1, options.context, dtype=torch.long)
    with torch.no_grad():
        cache = model(ids, use_cache=True, logits_to_keep=1).cache
    state = sum(t.nbytes for layer in cache.layers
                for t in getattr(layer, "recurrent_states", {}).values())  # fmt: skip
    kv = sum(
        layer.keys.nbytes + layer.values.nbytes
        for layer in cache.layers
        if getattr(layer, "keys", None) is not None
    )
    return {
        "kv": cache_format.kv,
        "ssm": cache_format.ssm,
        "kv_bytes": kv,
        "ssm_bytes": state,
        "exam": accuracy(scored),
        "recall": accuracy(scored, RECALL_SUBJECTS),
        "perplexity": scored.perplexity.perplexity,
    }


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    first = rows[0]
    console.table(
        [
            "keys, values",
            "states",
            "size of keys, values",
            "of states",
            "bundled exam",
            "recall",
            "perplexity",
        ],
        [
            (
                row["kv"].replace("auto", "float32"),
                row["ssm"].replace("auto", "float32"),
                f"{size_in_words(row['kv_bytes'])} ({row['kv_bytes'] / first['kv_bytes']:.0%})",
                f"{size_in_words(row['ssm_bytes'])} ({row['ssm_bytes'] / first['ssm_bytes']:.0%})",
                f"{row['exam']:.1%}",
                f"{row['recall']:.1%}",
                f"{row['perplexity']:.4f}",
            )
            for row in rows
        ],
        title=f"The cache of {options.model.name} at {options.context:,} tokens",
    )
    result = {
        "benchmark": "cache_formats",
        "model": options.model.name,
        "settings": {"context": options.context},
        "versions": {name: version(name) for name in ("hybridize", "torch")},
        "rows": rows,
    }
    write_result(options.output, "cache_formats", result)


if __name__ == "__main__":
    main()
