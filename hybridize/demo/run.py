"""`hybridize demo`: the main job on the bundled checkpoint, offline, on a CPU, in minutes.

Aligns a Mamba-2 block for every attention block, finds out with those which attention to keep,
distills the hybrid, prunes and quantizes it, opens the results with plain transformers, sits the
bundled exam with all of them, measures their speed, and draws the report.
"""

import gzip
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hybridize.console import console
from hybridize.demo import CHECKPOINT, EXAM, KNOWLEDGE_SUBJECTS, PROSE, RECALL_SUBJECTS, TEXT
from hybridize.errors import HybridizeError, InputError

KEPT = 2
"""How many of the checkpoint's eight attention blocks the hybrid keeps."""

ALIGN_TOKENS = 250_000
DISTILL_TOKENS = 450_000
PRUNED = "80%"
QUESTIONS: int | None = None
"""How many questions of each subject are asked; all of them if None."""

SPEED: dict[str, Any] = {
    "prompt_len": (512, 4096),
    "batch_size": (4,),
    "gen_len": 16,
    "repeats": 3,
}
"""What is timed. Only a long prompt and a batch show what attention costs so small a model."""

_LEARNING = {"seq_len": 512, "batch_size": 8, "device": "cpu"}
_CONTEXT = 32 * 1024


@dataclass(frozen=True)
class DemoRow:
    """One model's figures.

    Attributes:
        model: what it is.
        directory: where it lies.
        layout: its pattern.
        parameters: how many.
        weight_bytes: what they take on disk.
        accuracy: on the whole exam, 0 to 1.
        knowledge: accuracy on what only the weights can know.
        recall: accuracy on what only the context tells.
        recovery: accuracy over the original's.
        perplexity: on held-out text of the checkpoint's world.
        cache_bytes: of one sequence of 32k tokens.
        speed: new tokens per second over the original's, after the longest prompt; None for what
            was not timed.
        difference: largest difference of stock transformers' logits from the original's, for a
            model in which nothing was swapped; None for the others.
    """

    model: str
    directory: Path
    layout: str
    parameters: int
    weight_bytes: int
    accuracy: float
    knowledge: float
    recall: float
    recovery: float
    perplexity: float
    cache_bytes: int
    speed: float | None
    difference: float | None


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        rows: the original first.
        text: what stock transformers writes with the distilled model.
        report: the page with the pictures.
        seconds: how long it all took.
    """

    rows: tuple[DemoRow, ...]
    text: str
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        rows = [asdict(row) | {"directory": row.directory.name} for row in self.rows]
        return {
            "rows": rows,
            "text": self.text,
            "report": self.report.name,
            "seconds": round(self.seconds, 1),
        }


def run_demo(output: str | Path, *, force: bool = False) -> DemoResult:
    """Convert, evaluate and open the bundled checkpoint.

    Args:
        output: a directory for the converted checkpoints, the text, the measurements and the
            report, ``report.html``.
        force: replace what an earlier run left there.

    Raises:
        InputError: the directory exists and ``force`` is off.
        HybridizeError: a step failed.
    """
    from hybridize.compress.distill.distill import distill
    from hybridize.compress.prune.prune import prune
    from hybridize.compress.quantize.quantize import quantize
    from hybridize.conversion.convert import convert
    from hybridize.evals.evaluate import evaluate
    from hybridize.evals.bench.bench import bench
    from hybridize.evals.report.report import report

    started = time.perf_counter()
    output = Path(output)
    if output.exists() and not force:
        raise InputError(f"{output}: exists already; --force replaces what a demo left there")
    output.mkdir(parents=True, exist_ok=True)
    text = output / "world.jsonl"
    text.write_bytes(gzip.decompress(TEXT.read_bytes()))
    calibrated: dict[str, Any] = {"calibration": text, "calibration_tokens": 4096, "force": force}
    learning: dict[str, Any] = {"teacher": CHECKPOINT, "data": (str(text),), "force": force}
    learning |= _LEARNING

    console.message("converting: nothing swapped, to see that nothing changes")
    whole = convert(CHECKPOINT, output / "attention-8", attention="100%", force=force)
    console.message(f"  {whole.format}: {whole.layout_after}")
    console.message("converting: all swapped, every new block fitted to its attention block")
    none = convert(CHECKPOINT, output / "attention-0-start", attention=0, **calibrated)
    console.message(f"  {none.format}: {none.layout_after}")
    console.message(f"distilling: every new block by itself, {ALIGN_TOKENS:,} tokens")
    aligned = output / "attention-0"
    distill(none.output, aligned, stages=("align",), tokens=ALIGN_TOKENS, **learning)
    console.message(f"converting: with those blocks, {KEPT} of 8 attention blocks kept")
    hybrid = convert(
        CHECKPOINT,
        output / f"attention-{KEPT}",
        attention=KEPT,
        select="sensitivity",
        init=aligned,
        **calibrated,
    )
    console.message(f"  {hybrid.format}: {hybrid.layout_after}")
    console.message(f"distilling: the whole hybrid, {DISTILL_TOKENS:,} tokens")
    distilled = output / f"attention-{KEPT}-distilled"
    distill(
        hybrid.output,
        distilled,
        stages=("kl",),
        tokens=DISTILL_TOKENS,
        **learning,
    )
    console.message(f"pruning: to {PRUNED} of its parameters")
    importance = output / "importance.safetensors"
    importance.unlink(missing_ok=True)  # prune would take an earlier run's for this one's
    pruned = prune(
        distilled,
        output / f"attention-{KEPT}-pruned",
        params=PRUNED,
        calibration=text,
        calibration_tokens=8192,
        candidates=4,
        scores=importance,
        device="cpu",
        force=force,
    )
    console.message(f"  {pruned.candidates[0].what}")
    console.message("quantizing: to FP8")
    small = quantize(pruned.output, output / f"attention-{KEPT}-fp8", device="cpu", force=force)
    directories = [
        ("nothing swapped", whole.output),
        ("none kept, aligned", aligned),
        (f"{KEPT} of 8 kept, aligned", hybrid.output),
        ("  distilled", distilled),
        (f"  pruned to {PRUNED}", pruned.output),
        ("  and in FP8", small.output),
    ]

    console.message("opening with plain transformers")
    exact = _stock_difference(whole.output)
    written = _stock_text(distilled)

    console.message("sitting the exam: 9 subjects, 5 solved questions before each")
    answers = output / "eval.json"
    evaluation = evaluate(
        [directory for _, directory in directories],
        baseline=CHECKPOINT,
        tasks=("mmlu",),
        mmlu_dir=EXAM,
        limit=QUESTIONS,
        perplexity=PROSE,
        output=answers,
        force=force,
    )
    console.message("timing: in turns, so that ratios hold on a busy machine")
    timed = bench(  # of those that differ in shape
        [aligned, distilled, pruned.output, small.output],
        baseline=CHECKPOINT,
        output=output / "bench.json",
        force=force,
        **SPEED,
    )
    speeds = {
        Path(row.model): row.ratios.decode.median
        for row in timed.rows
        if row.ratios is not None and row.point.prompt_len == SPEED["prompt_len"][-1]
    }
    original, *others = evaluation.models
    rows = [_row("original", CHECKPOINT, original, original)]
    for (what, directory), scored in zip(directories, others, strict=True):
        row = _row(what, directory, scored, original)
        difference = exact if directory == whole.output else None
        rows.append(replace(row, speed=speeds.get(directory), difference=difference))
    drawn = report(
        [answers, output / "bench.json", importance, distilled, pruned.output],
        output / "report.html",
        png=True,
        force=force,
    )
    done = DemoResult(tuple(rows), written, drawn.output, time.perf_counter() - started)
    (output / "results.json").write_text(json.dumps(done.to_dict(), indent=2) + "\n", "utf-8")
    return done


def _row(what: str, directory: Path, scored: Any, original: Any) -> DemoRow:
    from hybridize.inspection.inspect import inspect

    found = inspect(directory, contexts=(_CONTEXT,))
    overall = _accuracy(scored, (*KNOWLEDGE_SUBJECTS, *RECALL_SUBJECTS))
    return DemoRow(
        model=what,
        directory=directory,
        layout=found.layout,
        parameters=found.parameters,
        weight_bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        accuracy=overall,
        knowledge=_accuracy(scored, KNOWLEDGE_SUBJECTS),
        recall=_accuracy(scored, RECALL_SUBJECTS),
        recovery=overall / _accuracy(original, (*KNOWLEDGE_SUBJECTS, *RECALL_SUBJECTS)),
        perplexity=scored.perplexity.perplexity,
        cache_bytes=found.cache[0].kv + found.cache[0].state,
        speed=None,
        difference=None,
    )


def _accuracy(scored: Any, subjects: Iterable[str]) -> float:
    """Return the accuracy over some of the exam's subjects, question by question."""
    wanted = {f"mmlu_{subject}" for subject in subjects}
    found = [m for m in scored.metrics if m.task in wanted and m.metric == "acc"]
    if {metric.task for metric in found} != wanted:
        raise HybridizeError("the evaluation left out some of the exam's subjects")
    return sum(m.value * m.questions for m in found) / sum(m.questions for m in found)


def _stock(directory: Path) -> Any:
    """Open a checkpoint as anybody would: no custom code."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _stock_difference(directory: Path) -> float:
    """Return how far a converted model's logits are from the original's, both in transformers."""
    import torch

    from hybridize.checkpoints.load import load_tokenizer

    text = PROSE.read_text("utf-8")[:2000]
    ids = load_tokenizer(CHECKPOINT)(text, return_tensors="pt").input_ids[:, :256]
    with torch.no_grad():
        before, after = _stock(CHECKPOINT)(ids).logits, _stock(directory)(ids).logits
    return float((before - after).abs().max())


def _stock_text(directory: Path) -> str:
    from hybridize.checkpoints.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
    ids = tokenizer("Some facts about geography.", return_tensors="pt").input_ids
    out = _stock(directory).generate(ids, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))
