"""Measure what pruning costs after distillation: prune a hybrid, and distill it from the hybrid.

    make demo                                                       # writes the hybrid
    python benchmarks/pruning_recovery.py
    python benchmarks/pruning_recovery.py --params 50% --tokens 2M

The accuracy is that on the bundled exam: of the hybrid before the cut, right after the cut, and
after distillation on text that the hybrid generated.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bundled import World, generate_prose
from measuring import accuracy, argument_parser, write_result

from hybridize import distill, evaluate, prune
from hybridize.console import console
from hybridize.demo import EXAM


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path("demo-out/attention-2-distilled"), help="the hybrid"
    )
    parser.add_argument("--params", default="70%", help="budget of parameters")
    parser.add_argument("--tokens", type=int, default=500_000, help="training tokens")
    parser.add_argument("--distill-top", type=int, default=2, help="candidates that prune distills")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="peak learning rate")
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"{options.model}: no such directory; `make demo` makes one, or give --model")
    with tempfile.TemporaryDirectory() as folder:
        report(measure(options, Path(folder)), options)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prune, distill, and evaluate all checkpoints."""
    prose = folder / "prose.txt"
    prose.write_text(generate_prose(World(), 1_000_003, 60))
    started = time.perf_counter()
    pruned = prune(
        options.model, folder / "pruned", params=options.params, candidates=8,
        distill_top=options.distill_top, tokens=options.tokens // 10,
    )  # fmt: skip
    prune_seconds = time.perf_counter() - started
    cut = prune(options.model, folder / "cut", params=options.params, candidates=8)
    started = time.perf_counter()
    distilled = distill(
        folder / "pruned", folder / "done", teacher=options.model, data=("teacher",),
        stages=("kl",), train="all", tokens=options.tokens, batch_size=8,
        learning_rates={"kl": options.learning_rate}, validate_every=10**6,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    scored = evaluate(
        [folder / "cut", folder / "pruned", folder / "done"],
        baseline=options.model,
        tasks=("mmlu",),
        mmlu_dir=EXAM,
        perplexity=prose,
    )
    names = ("hybrid", "cut", "cut, after --distill-top", "distilled")
    (kl,) = distilled.stages
    return {
        "changes": pruned.candidates[0].changes,
        "parameters": [pruned.parameters_before, pruned.parameters_after],
        "kl_just_cut": cut.candidates[0].kl,
        "kl_before": kl.validation_before,
        "kl_after": kl.validation_after,
        "seconds": {"prune": prune_seconds, "distill": seconds},
        "rows": [
            {
                "model": name,
                "exam": accuracy(found),
                "perplexity": found.perplexity.perplexity,
            }
            for name, found in zip(names, scored.models, strict=True)
        ],
    }


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    before, after = found["parameters"]
    first = found["rows"][0]
    console.table(
        ["model", "bundled exam", "relative to the hybrid", "perplexity"],
        [
            (
                row["model"],
                f"{row['exam']:.1%}",
                f"{row['exam'] / first['exam']:.1%}",
                f"{row['perplexity']:.3f}",
            )
            for row in found["rows"]
        ],
        title=f"{before:,} to {after:,} parameters ({after / before:.0%}): {found['changes']}",
        caption=f"Distilled on {options.tokens:,} tokens that the hybrid generated: KL "
        f"{found['kl_before']:.4f} to {found['kl_after']:.4f} nats per token.",
    )
    settings = {
        "model": options.model.name, "params": options.params, "tokens": options.tokens,
        "distill_top": options.distill_top, "learning_rate": options.learning_rate,
    }  # fmt: skip
    versions = {name: version(name) for name in ("hybridize", "torch")}
    result = {"benchmark": "pruning_recovery", "settings": settings, "versions": versions, **found}
    write_result(options.output, "pruning_recovery", result)


if __name__ == "__main__":
    main()
