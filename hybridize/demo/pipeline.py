"""`hybridize demo`: all commands on the bundled checkpoint, offline, on a CPU, in minutes.

1. Convert without swapping any block, to see that nothing changes.
2. Swap all attention blocks and align each new block with the attention that it replaces.
3. Measure with the aligned blocks which attention blocks to keep, and swap the others.
4. Distill, prune and quantize the hybrid.
5. Open the results with plain transformers, evaluate them, time them, and draw the report.
"""

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridize.console import console
from hybridize.demo import CHECKPOINT, EXAM, PROSE, TEXT
from hybridize.demo.config import DemoConfig
from hybridize.demo.results import DemoModel, DemoResult, DemoRow, row_of
from hybridize.errors import InputError
from hybridize.interrupts import INTERRUPTIONS
from hybridize.options import takes_options
from hybridize.output_files import follow_link, write_atomically

KEPT = 2
"""How many of the checkpoint's eight attention blocks the hybrid keeps."""

PARAMS = "80%"
"""The budget of parameters for pruning."""


@dataclass(frozen=True)
class DemoSizes:
    """How much the demo computes.

    Attributes:
        calibration_tokens: tokens on which new blocks are fitted and swaps are measured.
        align_tokens: tokens of the align stage.
        distill_tokens: tokens of the kl stage.
        validation_sequences: sequences on which distillation is validated.
        prune_tokens: tokens on which importance is measured.
        candidates: pruning candidates that are compared.
        questions: number of questions per subject; None for all.
        bench: options of `hybridize.bench`. Only long prompts and a batch show the cost of
            attention in so small a model.
    """

    calibration_tokens: int = 4096
    align_tokens: int = 250_000
    distill_tokens: int = 450_000
    validation_sequences: int = 16
    prune_tokens: int = 8192
    candidates: int = 4
    questions: int | None = None
    bench: dict[str, Any] = field(
        default_factory=lambda: {
            "prompt_len": (512, 4096), "batch_size": (4,), "gen_len": 16, "repeats": 3,
        }
    )  # fmt: skip


SIZES = DemoSizes()


@takes_options(DemoConfig)
def run_demo(config: DemoConfig) -> DemoResult:
    """Convert, distill, prune, quantize, open and measure the bundled checkpoint.

    Args:
        config: the options; or give each option as a keyword. The output directory gets the
            checkpoints, the text, the measurements and the report, ``report.html``.

    Raises:
        InputError: the directory exists and ``force`` is false.
        HybridizeError: a command failed.
    """
    output = follow_link(Path(config.output))
    if output.exists() and not config.force:
        raise InputError(f"{output}: exists already; `force` replaces the files of an earlier demo")
    output.mkdir(parents=True, exist_ok=True)
    try:
        return _run(output, config.force)
    except INTERRUPTIONS as interruption:
        interruption.add_note("run it again with `force`; it starts from the beginning")
        raise


def _run(output: Path, force: bool) -> DemoResult:
    from hybridize.demo.stock_transformers import generated_text, logit_difference

    started = time.perf_counter()
    commands = _Commands(output, force)
    exact = commands.convert_nothing()
    aligned = commands.convert_all_and_align()
    hybrid = commands.convert_some(aligned)
    distilled = commands.distill(hybrid)
    pruned = commands.prune(distilled)
    quantized = commands.quantize(pruned)
    models = [exact, aligned, hybrid, distilled, pruned, quantized]
    console.message("opening with plain transformers")
    difference = logit_difference(exact.directory)
    text = generated_text(distilled.directory)
    evaluation = commands.evaluate(models)
    # Models of the same shape have the same speed: time one model of each shape.
    speeds = commands.bench([aligned, distilled, pruned, quantized])
    original, *others = evaluation.models
    rows: list[DemoRow] = [row_of(DemoModel("original", CHECKPOINT), original, original)]
    for model, scores in zip(models, others, strict=True):
        rows.append(
            row_of(
                model,
                scores,
                original,
                speed=speeds.get(model.directory),
                difference=difference if model is exact else None,
            )
        )
    report = commands.report([distilled, pruned])
    result = DemoResult(tuple(rows), text, report, time.perf_counter() - started)
    write_atomically(output / "results.json", json.dumps(result.to_dict(), indent=2) + "\n")
    return result


class _Commands:
    """The commands that the demo runs, each with its options.

    Args:
        output: the directory in which they write.
        force: whether they replace existing files.
    """

    def __init__(self, output: Path, force: bool) -> None:
        self._output, self._force = output, force
        self._text = output / "world.jsonl"
        self._text.write_bytes(gzip.decompress(TEXT.read_bytes()))
        self._importance = output / "importance.safetensors"
        self._evaluation, self._bench = output / "eval.json", output / "bench.json"
        self._calibration: dict[str, Any] = {
            "calibration": self._text,
            "calibration_tokens": SIZES.calibration_tokens,
            "force": force,
        }
        self._training: dict[str, Any] = {
            "teacher": CHECKPOINT,
            "data": (str(self._text),),
            "seq_len": 512,
            "batch_size": 8,
            "validation_sequences": SIZES.validation_sequences,
            "device": "cpu",
            "force": force,
        }

    def convert_nothing(self) -> DemoModel:
        from hybridize.conversion.convert import convert

        console.message("converting: no block swapped, to see that nothing changes")
        done = convert(
            CHECKPOINT, self._output / "attention-8", attention="100%", force=self._force
        )
        console.message(f"  {done.format}: {done.layout_after}")
        return DemoModel("no block swapped", done.output)

    def convert_all_and_align(self) -> DemoModel:
        from hybridize.compress.distill.distill import distill
        from hybridize.conversion.convert import convert

        console.message("converting: all attention swapped, each new block fitted to a text")
        start = convert(
            CHECKPOINT, self._output / "attention-0-start", attention=0, **self._calibration
        )
        console.message(f"  {start.format}: {start.layout_after}")
        console.message(f"distilling: each new block by itself, {SIZES.align_tokens:,} tokens")
        output = self._output / "attention-0"
        distill(
            start.output, output, stages=("align",), tokens=SIZES.align_tokens, **self._training
        )
        return DemoModel("0 of 8 kept, aligned", output)

    def convert_some(self, aligned: DemoModel) -> DemoModel:
        from hybridize.conversion.convert import convert

        console.message(f"converting: {KEPT} of 8 attention blocks kept, the others aligned")
        done = convert(
            CHECKPOINT,
            self._output / f"attention-{KEPT}",
            attention=KEPT,
            select="sensitivity",
            init=aligned.directory,
            **self._calibration,
        )
        console.message(f"  {done.format}: {done.layout_after}")
        return DemoModel(f"{KEPT} of 8 kept, aligned", done.output)

    def distill(self, hybrid: DemoModel) -> DemoModel:
        from hybridize.compress.distill.distill import distill

        console.message(f"distilling: the whole hybrid, {SIZES.distill_tokens:,} tokens")
        output = self._output / f"attention-{KEPT}-distilled"
        tokens = SIZES.distill_tokens
        distill(hybrid.directory, output, stages=("kl",), tokens=tokens, **self._training)
        return DemoModel("  distilled", output)

    def prune(self, distilled: DemoModel) -> DemoModel:
        from hybridize.compress.prune.prune import prune

        console.message(f"pruning: to {PARAMS} of the parameters")
        self._importance.unlink(missing_ok=True)  # otherwise prune reuses it
        done = prune(
            distilled.directory,
            self._output / f"attention-{KEPT}-pruned",
            params=PARAMS,
            calibration=self._text,
            calibration_tokens=SIZES.prune_tokens,
            candidates=SIZES.candidates,
            scores=self._importance,
            device="cpu",
            force=self._force,
        )
        console.message(f"  {done.candidates[0].changes}")
        return DemoModel(f"  pruned to {PARAMS}", done.output)

    def quantize(self, pruned: DemoModel) -> DemoModel:
        from hybridize.compress.quantize.quantize import quantize

        console.message("quantizing: to FP8")
        output = self._output / f"attention-{KEPT}-fp8"
        done = quantize(pruned.directory, output, device="cpu", force=self._force)
        return DemoModel("  quantized to FP8", done.output)

    def evaluate(self, models: Sequence[DemoModel]) -> Any:
        from hybridize.evals.evaluate import evaluate

        console.message("evaluating: the bundled exam, 9 subjects, 5-shot")
        return evaluate(
            [model.directory for model in models],
            baseline=CHECKPOINT,
            tasks=("mmlu",),
            mmlu_dir=EXAM,
            limit=SIZES.questions,
            perplexity=PROSE,
            output=self._evaluation,
            force=self._force,
        )

    def bench(self, models: Sequence[DemoModel]) -> dict[Path, float]:
        """Return each model's decoding speed after the longest prompt, relative to the original."""
        from hybridize.evals.bench.bench import bench

        console.message("timing: the models take turns, so that other load slows all of them alike")
        done = bench(
            [model.directory for model in models],
            baseline=CHECKPOINT,
            output=self._bench,
            force=self._force,
            **SIZES.bench,
        )
        return {
            Path(row.model): row.ratios.decode.median
            for row in done.rows
            if row.ratios is not None and row.point.prompt_len == SIZES.bench["prompt_len"][-1]
        }

    def report(self, models: Sequence[DemoModel]) -> Path:
        from hybridize.evals.report.report import report

        measured = [self._evaluation, self._bench, self._importance]
        drawn = report(
            [*measured, *(model.directory for model in models)],
            self._output / "report.html",
            png=True,
            force=self._force,
        )
        return drawn.output
