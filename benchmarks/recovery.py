"""Measure what each step of conversion and distillation contributes to the quality.

Converts a checkpoint in several ways and distills every result on the same text for the same
number of tokens. Reports the KL divergence before and after distillation, and the perplexity as a
multiple of the teacher's:

    python benchmarks/recovery.py                                   # the bundled checkpoint
    python benchmarks/recovery.py --model DIR --perplexity FILE     # any other
    python benchmarks/recovery.py --cases kept --tokens 2M          # some cases, for more tokens

Results are written as they come, and the same command continues after an interruption. To measure a
case again, delete its row in the results.

The reference has three steps. It aligns a new block for every attention block. With these blocks it
measures which attention blocks the model needs least, and replaces those. Then it trains the new
blocks end to end. Every other case changes one thing (an ablation).
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

from bundled import RECALL_SUBJECTS, Settings, World, generate_documents, generate_prose
from measuring import accuracy, argument_parser, write_result

from hybridize import convert, distill, evaluate
from hybridize.console import console
from hybridize.demo import CHECKPOINT, EXAM
from hybridize.option_types import Count

KEPT = "25%"
TEXT_SEED = 77
PROSE_SEED = 1_000_003
ALIGN_FACTOR = 1.0
"""Tokens of the alignment, as a multiple of ``--tokens``."""


@dataclass(frozen=True)
class Case:
    """One way to convert and distill.

    Attributes:
        name: the difference from the reference.
        convert: options of the conversion.
        aligned: whether the new blocks are aligned before the attention blocks are chosen.
        train: the parameters that the distillation trains.
        learning_rate_factor: its learning rate as a multiple of ``--learning-rate``.
        tokens_factor: its tokens as a multiple of ``--tokens``.
    """

    name: str
    convert: dict[str, Any] = field(default_factory=dict)
    aligned: bool = True
    train: str = "mixers"
    learning_rate_factor: float = 1.0
    tokens_factor: float = 1.0


_UNIFORM = {"select": "uniform"}
_UNFITTED = {"select": "uniform", "calibration": None}
CASES: dict[str, list[Case]] = {
    "reference": [Case("reference: aligned, then selected")],
    "select": [
        Case("selected, without aligning", aligned=False),
        Case("aligned, selected by recall", {"select": "recall"}),
        Case("aligned, evenly spaced", _UNIFORM),
        Case("calibrated, evenly spaced", _UNIFORM, aligned=False),
    ],
    "init": [
        Case("evenly spaced, from attention's weights alone", _UNFITTED, aligned=False),
        Case("evenly spaced, random", _UNFITTED | {"init": "random"}, aligned=False),
    ],
    "train": [
        Case(
            "training the whole model, half the learning rate",
            train="all",
            learning_rate_factor=0.5,
        )
    ],
    "sizes": [
        Case(
            "calibrated, evenly spaced, one B and C per query head",
            _UNIFORM | {"ssm_groups": "heads"},
            aligned=False,
        ),
        Case(
            "calibrated, evenly spaced, twice the state size",
            _UNIFORM | {"d_state": 2.0},
            aligned=False,
        ),
        Case(
            "calibrated, evenly spaced, twice the width",
            _UNIFORM | {"ssm_expand": 2},
            aligned=False,
        ),
    ],
    "kept": [
        Case(f"{share} of attention kept", {"attention": share}) for share in ("0%", "12%", "50%")
    ],
    "longer": [Case("six times the tokens", tokens_factor=6.0)],
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
        "--data",
        help="text to train on, or teacher; default: generated as for the bundled checkpoint",
    )
    parser.add_argument(
        "--perplexity",
        type=Path,
        help="held-out text; default: generated as for the bundled checkpoint",
    )
    parser.add_argument(
        "--tokens", type=Count().convert, default=250_000, help="training tokens of each case"
    )
    parser.add_argument("--seq-len", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per step")
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="peak learning rate of the kl stage"
    )
    parser.add_argument(
        "--cases", default=",".join(CASES), help="names of the groups of cases, separated by commas"
    )
    parser.add_argument("--name", help="name of the results; default: the model directory's name")
    options = parser.parse_args()
    options.name = options.name or options.model.resolve().name
    path = options.output / f"recovery-{options.name}.json"
    result = empty_result(options)
    if path.exists() and (before := json.loads(path.read_text()))["settings"] == result["settings"]:
        result = before
    cases = [case for group in options.cases.split(",") for case in CASES[group]]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            if case.name not in {row["case"] for row in result["rows"]}:
                result["rows"].append(recover(case, options, Path(folder)))
                write_result(options.output, path.stem, result)
    order = [case.name for group in CASES.values() for case in group]
    result["rows"].sort(key=lambda row: order.index(row["case"]))
    write_result(options.output, path.stem, result)
    show(result["rows"], options.name)
    draw(result["rows"], options.name, path.with_suffix(".png"))
    console.message(f"written: {path.with_suffix('.png')}")


def empty_result(options: argparse.Namespace) -> dict[str, Any]:
    """Return the result of no case, with the settings."""
    return {
        "benchmark": "recovery",
        "model": options.name,
        "settings": {
            "tokens": options.tokens,
            "align_tokens": int(options.tokens * ALIGN_FACTOR),
            "seq_len": options.seq_len,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "data": "teacher" if options.data == "teacher" else "text",
        },
        "versions": {name: version(name) for name in ("hybridize", "torch")},
        "rows": [],
    }


def recover(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Convert and distill one case, and measure the result; return its row of the table."""
    console.message(f"case: {case.name}")
    data, prose = texts(options, folder)
    output = folder / "distilled"
    conversion = {"attention": KEPT, "select": "sensitivity", "calibration": data} | case.convert
    if isinstance(conversion.get("d_state"), float):  # a multiple of the head dim
        raw = json.loads((options.model / "config.json").read_text())
        head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
        conversion["d_state"] = int(conversion["d_state"] * head_dim)
    training = {
        "teacher": options.model,
        "data": (data,),
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "validate_every": 10**6,
        "force": True,
    }
    started = time.perf_counter()
    align_tokens = 0
    if case.aligned:
        aligned_hybrid, align_tokens = aligned(data, options, training, folder)
        conversion["init"] = aligned_hybrid
        if conversion["select"] == "uniform":
            conversion["calibration"] = None
    converted = convert(options.model, folder / "converted", force=True, **conversion)
    result = distill(
        folder / "converted",
        output,
        stages=("kl",),
        tokens=int(options.tokens * case.tokens_factor),
        data_tokens=int(options.tokens * case.tokens_factor),
        learning_rates={"kl": options.learning_rate * case.learning_rate_factor},
        train=case.train,
        **training,
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
        "tokens": align_tokens + kl.tokens,
        "seconds": seconds,
        **scores(output, options, prose),
    }


def scores(model: Path, options: argparse.Namespace, prose: Path) -> dict[str, float]:
    """Return a model's perplexity and the bundled checkpoint's exam scores, as multiples."""
    bundled = options.model == CHECKPOINT
    scored = evaluate(
        [model],
        baseline=options.model,
        perplexity=prose,
        tasks=("mmlu",) if bundled else (),
        mmlu_dir=EXAM if bundled else None,
    )
    teacher, student = scored.models
    found = {"perplexity_ratio": student.perplexity.perplexity / teacher.perplexity.perplexity}
    if bundled:
        for name, subjects in (("exam", None), ("recall", RECALL_SUBJECTS)):
            found[name] = accuracy(student, subjects) / accuracy(teacher, subjects)
    return found


def aligned(
    data: str, options: argparse.Namespace, training: dict[str, Any], folder: Path
) -> tuple[Path, int]:
    """Return a hybrid without attention whose blocks are aligned, and its training tokens.

    All cases share this hybrid.
    """
    aligned_hybrid, tokens = folder / "aligned", int(options.tokens * ALIGN_FACTOR)
    if not aligned_hybrid.exists():
        convert(options.model, folder / "all", attention="0%", calibration=data, force=True)
        distill(
            folder / "all",
            aligned_hybrid,
            stages=("align",),
            tokens=tokens,
            data_tokens=tokens,
            **training,
        )
    return aligned_hybrid, tokens


def texts(options: argparse.Namespace, folder: Path) -> tuple[str, Path]:
    """Return the text to train on and the text to measure perplexity on."""
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


def show(rows: list[dict[str, Any]], name: str) -> None:
    """Print the table."""
    exam = "exam" in rows[0]
    console.table(
        ["case", "kept", "KL before", "KL after", "perplexity"]
        + (["bundled exam", "recall"] if exam else [])
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
        caption="KL from the teacher in nats per token on held-out sequences, before and after the "
        "kl stage. Perplexity on held-out text, as a multiple of the teacher's."
        + (" Bundled exam and recall: accuracy as a percentage of the teacher's." if exam else ""),
    )


def draw(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Draw a bar chart of the KL before and after distillation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    positions = range(len(rows))
    for key, offset, color in (("kl_before", -0.2, "#9ac1d9"), ("kl_after", 0.2, "#2a6f97")):
        bars = axes.barh([p + offset for p in positions], [row[key] for row in rows], 0.38,
                         color=color, label=key.replace("kl_", "KL "))  # fmt: skip
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.set_yticks(list(positions), [row["case"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("KL from the teacher, nats per token")
    axes.set_title(f"Recovery of {name}")
    axes.legend(loc="lower right")
    axes.margins(x=0.15)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
