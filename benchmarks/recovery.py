"""What each step toward recovery is worth: the ablation that a sceptic would ask for.

Converts a checkpoint in several ways, distills every result on the same text for the same number
of tokens, and reports the KL divergence before and after, and the perplexity as a multiple of the
teacher's:

    python benchmarks/recovery.py                                   # the bundled checkpoint
    python benchmarks/recovery.py --model DIR --perplexity FILE     # any other
    python benchmarks/recovery.py --cases kept --tokens 2M          # some of it, for longer

The reference aligns a new block for every attention block, keeps the attention that costs the most
by sensitivity measured with those, and trains the new blocks that are left end to end. Every other
row changes something of it.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import accuracy

from hybridize import convert, distill, evaluate
from hybridize.console import console
from hybridize.demo import CHECKPOINT, EXAM
from tools.bundled_checkpoint.settings import Settings
from tools.bundled_checkpoint.texts import generate_documents, generate_prose
from tools.bundled_checkpoint.world import RECALL_SUBJECTS, World

KEPT = "25%"
TEXT_SEED = 77
PROSE_SEED = 1_000_003
ALIGN_SHARE = 1.0
"""Tokens of the alignment, as a share of the distillation's."""


@dataclass(frozen=True)
class Case:
    """One way to a good hybrid.

    Attributes:
        name: what is done otherwise than in the reference.
        convert: options of the conversion.
        aligned: whether new blocks are aligned before attention is chosen.
        train: what the distillation trains.
        rate: its learning rate as a multiple of ``--learning-rate``.
        times: its tokens as a multiple of ``--tokens``.
    """

    name: str
    convert: dict[str, Any] = field(default_factory=dict)
    aligned: bool = True
    train: str = "mixers"
    rate: float = 1.0
    times: float = 1.0


_UNIFORM = {"select": "uniform"}
_UNFITTED = {"select": "uniform", "calibration": None}
CASES: dict[str, list[Case]] = {
    "reference": [Case("reference: aligned, then selected")],
    "select": [
        Case("selected before aligning, none of it", aligned=False),
        Case("aligned, evenly spread", _UNIFORM),
        Case("neither: calibrated, evenly spread", _UNIFORM, aligned=False),
    ],
    "init": [
        Case("evenly spread, attention's weights alone", _UNFITTED, aligned=False),
        Case("evenly spread, random", _UNFITTED | {"init": "random"}, aligned=False),
    ],
    "train": [Case("all of it trains, at half the rate", train="all", rate=0.5)],
    "sizes": [
        Case("neither, one B and C per KV head", _UNIFORM | {"ssm_groups": "kv"}, aligned=False),
        Case("neither, state twice as large", _UNIFORM | {"d_state": 2.0}, aligned=False),
        Case("neither, twice as wide", _UNIFORM | {"ssm_expand": 2}, aligned=False),
    ],
    "kept": [
        Case(f"{share} of attention kept", {"attention": share}) for share in ("0%", "12%", "50%")
    ],
    "longer": [Case("six times the tokens", times=6.0)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", help="text to learn from; the bundled world's, or teacher")
    parser.add_argument("--perplexity", type=Path, help="held-out text; the bundled world's")
    parser.add_argument("--tokens", type=_count, default=250_000, help="to distill each case with")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--cases", default=",".join(CASES), help="which, comma separated")
    parser.add_argument("--name", help="of the result; the model's directory name if not given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for group in options.cases.split(",") for case in CASES[group]]
        outputs = [Path(folder) / f"distilled-{number}" for number in range(len(cases))]
        rows = [
            recover(case, options, Path(folder), output)
            for case, output in zip(cases, outputs, strict=True)
        ]
        score(rows, outputs, options, texts(options, Path(folder))[1])
    report(rows, options)


def recover(case: Case, options: argparse.Namespace, folder: Path, output: Path) -> dict[str, Any]:
    """Convert and distill one case; return its figures."""
    console.message(f"case: {case.name}")
    data, _ = texts(options, folder)
    chosen = {"attention": KEPT, "select": "sensitivity", "calibration": data} | case.convert
    if isinstance(chosen.get("d_state"), float):  # a multiple of the head dim
        raw = json.loads((options.model / "config.json").read_text())
        head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
        chosen["d_state"] = int(chosen["d_state"] * head_dim)
    learning = {
        "teacher": options.model,
        "data": (data,),
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "validate_every": 10**6,
        "force": True,
    }
    started = time.perf_counter()
    spent = 0
    if case.aligned:
        donor, spent = aligned(data, options, learning, folder)
        chosen["init"] = donor
        if chosen["select"] == "uniform":
            chosen["calibration"] = None
    converted = convert(options.model, folder / "converted", force=True, **chosen)
    result = distill(
        folder / "converted",
        output,
        stages=("kl",),
        tokens=int(options.tokens * case.times),
        data_tokens=int(options.tokens * case.times),
        learning_rates={"kl": options.learning_rate * case.rate},
        train=case.train,
        **learning,
    )
    seconds = time.perf_counter() - started
    (kl,) = result.stages
    return {
        "case": case.name,
        "kept": list(converted.kept),
        "layout": converted.layout_after,
        "parameters": converted.parameters_after,
        "kl_before": kl.validation_before,
        "kl_after": kl.validation_after,
        "tokens": spent + kl.tokens,
        "seconds": seconds,
    }


def score(
    rows: list[dict[str, Any]], models: list[Path], options: argparse.Namespace, prose: Path
) -> None:
    """Add what only the finished models tell: perplexity, and the exam of the bundled one."""
    bundled = options.model == CHECKPOINT
    scored = evaluate(
        models,
        baseline=options.model,
        perplexity=prose,
        tasks=("mmlu",) if bundled else (),
        mmlu_dir=EXAM if bundled else None,
    )
    teacher, *students = scored.models
    for row, student in zip(rows, students, strict=True):
        row["perplexity_ratio"] = student.perplexity.perplexity / teacher.perplexity.perplexity
        if bundled:
            for name, subjects in (("exam", None), ("recall", RECALL_SUBJECTS)):
                row[name] = accuracy(student, subjects) / accuracy(teacher, subjects)


def aligned(
    data: str, options: argparse.Namespace, learning: dict[str, Any], folder: Path
) -> tuple[Path, int]:
    """Return a hybrid whose new blocks, one for every attention block, are aligned, and its tokens.

    Every case starts from the same one.
    """
    donor, tokens = folder / "aligned", int(options.tokens * ALIGN_SHARE)
    if not donor.exists():
        convert(options.model, folder / "all", attention="0%", calibration=data, force=True)
        distill(
            folder / "all", donor, stages=("align",), tokens=tokens, data_tokens=tokens, **learning
        )
    return donor, tokens


def texts(options: argparse.Namespace, folder: Path) -> tuple[str, Path]:
    """Return the text to learn from and the one to measure perplexity on."""
    data, prose = options.data, options.perplexity
    if data is None:
        path = folder / "world.jsonl"
        if not path.exists():
            documents = generate_documents(World(), TEXT_SEED, Settings().stages[-1].mix)
            lines = [json.dumps({"text": text}) for text in islice(documents, 12_000)]
            path.write_text("\n".join(lines))
        data = str(path)
    if prose is None:
        prose = folder / "prose.txt"
        prose.write_text(generate_prose(World(), PROSE_SEED, 60))
    return data, prose


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table, draw the plot, and write the figures down."""
    name = options.name or options.model.resolve().name
    exam = "exam" in rows[0]
    console.table(
        ["case", "kept", "KL before", "KL after", "perplexity"]
        + (["exam", "recall"] if exam else [])
        + ["tokens", "seconds"],
        [
            (
                row["case"],
                ",".join(map(str, row["kept"])) or "none",
                f"{row['kl_before']:.3f}",
                f"{row['kl_after']:.3f}",
                f"{row['perplexity_ratio']:.3f} ×",
                *((f"{row['exam']:.1%}", f"{row['recall']:.1%}") if exam else ()),
                f"{row['tokens']:,}",
                f"{row['seconds']:.0f}",
            )
            for row in rows
        ],
        title=f"Recovery of {name}",
        caption="KL to the teacher in nats per token, on held-out rows, before and after the kl "
        "stage; perplexity on held-out text as a multiple of the teacher's"
        + (", exam and recall accuracy as shares of the teacher's." if exam else "."),
    )
    result = {
        "benchmark": "recovery",
        "model": name,
        "settings": {
            "tokens": options.tokens,
            "align_tokens": int(options.tokens * ALIGN_SHARE),
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
    for key, offset, color in (("kl_before", -0.2, "#9ac1d9"), ("kl_after", 0.2, "#2a6f97")):
        bars = axes.barh([p + offset for p in places], [row[key] for row in rows], 0.38,
                         color=color, label=key.replace("kl_", "KL "))  # fmt: skip
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
