"""What each step towards recovery is worth: the ablation that a sceptic would ask for.

Converts a checkpoint in several ways, distils every result on the same text for the same number
of tokens, and reports the KL divergence before and after, and the perplexity as a multiple of the
teacher's:

    python benchmarks/recovery.py                                   # the bundled checkpoint
    python benchmarks/recovery.py --model DIR --perplexity FILE     # any other
    python benchmarks/recovery.py --cases kept --tokens 2M          # some of it, for longer

Every row changes one choice of the one called "reference".
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from hybridize import convert, distill, evaluate
from hybridize.console import console
from hybridize.demo import CHECKPOINT
from hybridize.demo.train import Settings
from hybridize.demo.world import World

KEPT = "25%"
TEXT_SEED = 77
PROSE_SEED = 1_000_003

Case = tuple[str, dict[str, Any], dict[str, Any]]
"""A name, what it changes in the conversion, and in the distillation."""

REFERENCE: dict[str, Any] = {"attention": KEPT, "select": "sensitivity"}
CASES: dict[str, list[Case]] = {
    "reference": [("reference: calibrated, by sensitivity", {}, {})],
    "init": [
        ("init random", {"select": "uniform", "init": "random", "calibration": None}, {}),
        ("init attention, uncalibrated", {"select": "uniform", "calibration": None}, {}),
        ("calibrated, uniform selection", {"select": "uniform"}, {}),
    ],
    "stages": [("align, then kl", {}, {"stages": ("align", "kl")})],
    "train": [("train all", {}, {"train": "all"})],
    "sizes": [
        ("one B and C per KV head", {"ssm_groups": "kv"}, {}),
        ("state twice as large", {"d_state": 2.0}, {}),
        ("twice as wide", {"ssm_expand": 2}, {}),
    ],
    "kept": [(f"{kept} of attention", {"attention": kept}, {}) for kept in ("0%", "12%", "50%")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", help="text to learn from; the bundled world's, or teacher")
    parser.add_argument("--perplexity", type=Path, help="held-out text; the bundled world's")
    parser.add_argument("--tokens", type=_count, default=500_000, help="to distil each case with")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--cases", default=",".join(CASES), help="which, comma separated")
    parser.add_argument("--name", help="of the result; the model's directory name if not given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(case, options, Path(folder))
            for group in options.cases.split(",")
            for case in CASES[group]
        ]
    report(rows, options)


def measure(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Convert and distil one case; return its figures."""
    name, changes, training = case
    console.message(f"case: {name}")
    data, prose = texts(options, folder)
    chosen = REFERENCE | {"calibration": data} | changes
    if isinstance(chosen.get("d_state"), float):  # a multiple of the head dim
        raw = json.loads((options.model / "config.json").read_text())
        head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
        chosen["d_state"] = int(chosen["d_state"] * head_dim)
    started = time.perf_counter()
    converted = convert(options.model, folder / "converted", force=True, **chosen)
    conversion = time.perf_counter() - started
    stages = training.get("stages", ("kl",))
    result = distill(
        folder / "converted",
        folder / "distilled",
        teacher=options.model,
        data=(data,),
        data_tokens=options.tokens,
        stages=stages,
        stage_tokens=dict.fromkeys(stages, options.tokens // len(stages)),
        learning_rates={"kl": options.learning_rate},
        seq_len=options.seq_len,
        batch_size=options.batch_size,
        validate_every=10**6,
        force=True,
        train=training.get("train", "mixers"),
    )
    scored = evaluate([folder / "distilled"], baseline=options.model, perplexity=prose)
    teacher, student = (model.perplexity.perplexity for model in scored.models)
    kl = next(stage for stage in result.stages if stage.stage == "kl")
    return {
        "case": name,
        "kept": list(converted.kept),
        "layout": converted.layout_after,
        "parameters": converted.parameters_after,
        "kl_before": kl.validation_before,
        "kl_after": kl.validation_after,
        "perplexity_ratio": student / teacher,
        "tokens": sum(stage.tokens for stage in result.stages),
        "convert_s": conversion,
        "distill_s": sum(stage.seconds for stage in result.stages),
    }


def texts(options: argparse.Namespace, folder: Path) -> tuple[str, Path]:
    """Return the text to learn from and the one to measure perplexity on."""
    data, prose = options.data, options.perplexity
    if data is None:
        path = folder / "world.jsonl"
        if not path.exists():
            documents = World().documents(TEXT_SEED, Settings().stages[-1].mix)
            lines = [json.dumps({"text": text}) for text in islice(documents, 6000)]
            path.write_text("\n".join(lines))
        data = str(path)
    if prose is None:
        prose = folder / "prose.txt"
        prose.write_text(World().prose(PROSE_SEED, 60))
    return data, prose


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table, draw the plot, and write the figures down."""
    name = options.name or options.model.resolve().name
    console.table(
        ["case", "kept", "KL before", "KL after", "perplexity", "tokens", "seconds"],
        [
            (
                row["case"],
                ",".join(map(str, row["kept"])) or "none",
                f"{row['kl_before']:.3f}",
                f"{row['kl_after']:.3f}",
                f"{row['perplexity_ratio']:.3f} ×",
                f"{row['tokens']:,}",
                f"{row['convert_s'] + row['distill_s']:.0f}",
            )
            for row in rows
        ],
        title=f"Recovery of {name}",
        caption="KL to the teacher in nats per token, on held-out rows, before and after the kl "
        "stage; perplexity on held-out text as a multiple of the teacher's.",
    )
    result = {
        "benchmark": "recovery",
        "model": name,
        "settings": {
            "tokens": options.tokens,
            "seq_len": options.seq_len,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "data": "teacher" if options.data == "teacher" else "text",
        },
        "versions": {name: version(name) for name in ("hybridize", "torch")},
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"recovery-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, name, path.with_suffix(".png"))
    console.message(f"written: {path} and {path.with_suffix('.png').name}")


def draw(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Draw KL before and after distillation, a bar each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    for key, offset, colour in (("kl_before", -0.2, "#9ac1d9"), ("kl_after", 0.2, "#2a6f97")):
        bars = axes.barh([p + offset for p in places], [row[key] for row in rows], 0.38,
                         color=colour, label=key.replace("kl_", "KL "))  # fmt: skip
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.set_yticks(list(places), [row["case"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("KL to the teacher, nats per token")
    axes.set_title(f"Recovery of {name}")
    axes.legend(loc="lower right")
    axes.margins(x=0.15)
    figure.savefig(path, dpi=130)


def _count(text: str) -> int:
    units = {"k": 10**3, "m": 10**6}
    number, unit = text.lower().rstrip("km"), units.get(text.lower()[-1:], 1)
    return int(float(number) * unit)


if __name__ == "__main__":
    main()
