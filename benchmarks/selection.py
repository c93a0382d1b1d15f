"""Compare ways to choose the attention blocks that a conversion keeps.

    python benchmarks/selection.py                                # the bundled checkpoint
    python benchmarks/selection.py --model DIR --data FILE --recall recall_associative_16
    python benchmarks/selection.py --model DIR --data FILE --parts greedy

The part ``greedy`` compares the lazy greedy selection with the plain one, which measures all
remaining blocks in each round. The part ``distill`` converts the model with each selection,
distills the results on the same text, and measures their KL divergence and recall. Results are
written as they come, and the same command continues after an interruption.
"""

import argparse
import json
import tempfile
import time
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bundled import RECALL_SUBJECTS, Settings, World, generate_documents
from measuring import accuracy, argument_parser, machine, write_result

from hybridize import convert, distill, evaluate
from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.conversion.retrieval import retrieval_texts
from hybridize.conversion.selection import PLAIN, selection_curve
from hybridize.conversion.swap_runs import Batch, SwapRuns
from hybridize.data.calibration import CALIBRATION_LENGTH
from hybridize.data.kl import kl_probes
from hybridize.data.load_text import load_packed_dataset
from hybridize.data.packing import PackedDataset
from hybridize.demo import CHECKPOINT, EXAM
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.model import HybridForCausalLM
from hybridize.option_types import Count

SELECTIONS = ("uniform", "sensitivity", "recall")
RATIO = "recall ÷ KL, one block at a time"
"""HALO's criterion: the rise of the recall loss, divided by that of the KL divergence, when one
block is swapped. The blocks with the largest ratios stay."""
TEXT_SEED = 78


def main() -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=CHECKPOINT, help="default: the bundled checkpoint")
    add("--data", help="text to measure and to train on; default: as for the bundled checkpoint")
    add("--attention", default="25%,50%", help="attention blocks to keep, separated by commas")
    add("--calibration-tokens", type=Count().convert, default=8192, help="tokens to fit on")
    add("--select-tokens", type=Count().convert, help="of these, to choose on; default: convert's")
    add("--tokens", type=Count().convert, default=250_000, help="training tokens")
    add("--seq-len", type=int, default=512, help="tokens per training sequence")
    add("--batch-size", type=int, default=8, help="sequences per step")
    add("--learning-rate", type=float, default=1e-3, help="peak learning rate")
    add("--recall", help="recall tasks, separated by commas; default: those of the bundled exam")
    add("--limit", type=int, help="questions per recall task; default: all")
    add("--parts", default="greedy,distill", help="what to do, separated by commas")
    add("--name", help="name of the results; default: the model directory's name")
    options = parser.parse_args()
    if options.model != CHECKPOINT and not options.data:
        parser.error("give --data with --model")
    if options.model != CHECKPOINT and not options.recall and "distill" in options.parts:
        parser.error("give --recall with --model")
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        if "greedy" in options.parts:
            benchmark.compare_greedy()
        if "distill" in options.parts:
            benchmark.compare_selections()
    benchmark.report()


class Benchmark:
    """The results so far, and what all measurements share.

    Args:
        options: the command line.
        folder: a temporary directory.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._name = f"selection-{options.name or options.model.resolve().name}"
        names = (
            "calibration_tokens", "select_tokens", "tokens", "seq_len", "batch_size",
            "learning_rate", "recall", "limit",
        )  # fmt: skip
        settings = {name: getattr(options, name) for name in names}
        self._result: dict[str, Any] = {
            "benchmark": "selection", "settings": settings, "machine": machine(torch.device("cpu")),
            "greedy": None, "rows": [],
        }  # fmt: skip
        path = options.output / f"{self._name}.json"
        if path.exists():
            before = json.loads(path.read_text())
            if before["settings"] == settings:
                self._result |= {"greedy": before["greedy"], "rows": before["rows"]}

    @cached_property
    def data(self) -> str:
        """The text, as an argument of convert and distill."""
        if self._options.data:
            return str(self._options.data)
        path = self._folder / "world.jsonl"
        documents = generate_documents(World(), TEXT_SEED, Settings().stages[-1].mix)
        lines = [json.dumps({"text": text}) for text in islice(documents, 12_000)]
        path.write_text("\n".join(lines))
        return str(path)

    @cached_property
    def dataset(self) -> PackedDataset:
        """The text to measure on, the same as that of convert."""
        model = load_model(self._options.model, dtype=torch.float32)
        return load_packed_dataset(
            [self.data],
            model=self._options.model,
            length=min(CALIBRATION_LENGTH, model.config.max_position_embeddings),
            tokens=self._options.select_tokens or self._options.calibration_tokens,
        )

    @cached_property
    def swapped(self) -> Path:
        """The model without attention. All measurements and conversions take their blocks here."""
        output = self._folder / "swapped"
        convert(
            self._options.model, output, attention="0%", dtype="float32", format="hybridize",
            calibration=self.data, calibration_tokens=self._options.calibration_tokens,
        )  # fmt: skip
        return output

    def models(self) -> tuple[HybridForCausalLM, dict[int, Mamba2]]:
        """Return the original, and the new mixer of each of its attention blocks."""
        teacher = load_model(self._options.model, dtype=torch.float32)
        student = load_model(self.swapped, dtype=torch.float32)
        pairs = zip(teacher.model.blocks, student.model.blocks, strict=True)
        mixers = {
            index: after.mixer
            for index, (before, after) in enumerate(pairs)
            if type(before.mixer) is not type(after.mixer)
        }
        return teacher, mixers

    def compare_greedy(self) -> None:
        """Measure the plain and the lazy selection."""
        if self._result["greedy"]:
            return
        teacher, mixers = self.models()
        curve = selection_curve(teacher, mixers, self.dataset)
        started = time.perf_counter()
        divergences = plain_greedy(teacher, mixers, self.dataset)
        count = len(mixers)
        self._result["greedy"] = {
            "blocks": count,
            "plain": {
                "kl": divergences,
                "runs": count * (count + 1) // 2,
                "seconds": time.perf_counter() - started,
            },
            "lazy": {
                "kl": [point.kl for point in curve.points[1:]],
                "runs": curve.cost.runs,
                "forwards": curve.cost.forwards,
                "seconds": curve.cost.seconds,
            },
        }
        self._save()

    def compare_selections(self) -> None:
        """Convert with each selection, and distill. The same blocks are distilled only once."""
        for attention in self._options.attention.split(","):
            for selection in (*SELECTIONS, RATIO):
                done = [(row["attention"], row["selection"]) for row in self._result["rows"]]
                if (attention, selection) in done:
                    continue
                console.message(f"selection: {selection}, {attention} of attention kept")
                row = {"attention": attention, "selection": selection}
                row |= self._convert(attention, selection)
                same = [r for r in self._result["rows"] if r["kept"] == row["kept"]]
                if same:
                    keys = ("kl_before", "kl_after", "recall", "seconds")
                    row |= {key: same[0][key] for key in keys}
                else:
                    row |= self._distill()
                self._result["rows"].append(row)
                self._save()

    def _convert(self, attention: str, selection: str) -> dict[str, Any]:
        chosen: dict[str, Any] = {"attention": attention, "select": selection}
        if selection == RATIO:
            layers = convert(self._options.model, self._folder / "plan", attention=attention,
                             dry_run=True)  # fmt: skip
            chosen = {"keep": self._largest_ratios(len(layers.kept))}
        elif selection != "uniform":
            chosen |= {
                "calibration": self.data,
                "calibration_tokens": self._options.calibration_tokens,
            }
            if self._options.select_tokens:
                chosen["select_tokens"] = self._options.select_tokens
        converted = convert(
            self._options.model, self._folder / "converted", init=self.swapped, force=True, **chosen
        )
        cost = converted.selection
        return {
            "kept": list(converted.kept),
            "runs": cost and cost.runs,
            "forwards": cost and cost.forwards,
            "selection_seconds": cost and cost.seconds,
        }

    @torch.no_grad()
    def _largest_ratios(self, keep: int) -> tuple[int, ...]:
        teacher, mixers = self.models()
        ids, seq_idx = self.dataset.sequences(range(len(self.dataset)))
        batches, weights = [Batch(PLAIN, ids, seq_idx)], {PLAIN: 1.0}
        texts = retrieval_texts(teacher, self._options.model, self.dataset, seed=0)
        for kind, text in texts.items():
            batches.append(Batch(kind, text.ids, text.seq_idx, text.labels))
            weights[kind] = 1.0
        ratios = []
        for index in sorted(mixers):
            runs = SwapRuns(teacher, {index: mixers[index]}, [batches], weights)
            runs.accept(index)
            runs.restore()
            recall = sum(runs.means[kind] for kind in texts) / len(texts)
            ratios.append(recall / runs.means[PLAIN])
        order = sorted(range(len(ratios)), key=ratios.__getitem__, reverse=True)
        return tuple(sorted(order[:keep]))

    def _distill(self) -> dict[str, Any]:
        options, output = self._options, self._folder / "distilled"
        started = time.perf_counter()
        result = distill(
            self._folder / "converted", output, teacher=options.model, data=(self.data,),
            stages=("kl",), tokens=options.tokens, data_tokens=options.tokens,
            seq_len=options.seq_len, batch_size=options.batch_size, validate_every=10**6,
            learning_rates={"kl": options.learning_rate}, force=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if options.recall:
            scored = evaluate([output], tasks=tuple(options.recall.split(",")), limit=options.limit)
            recall = accuracy_of(scored.models[0])
        else:
            scored = evaluate([output], tasks=("mmlu",), mmlu_dir=EXAM, limit=options.limit)
            recall = accuracy(scored.models[0], RECALL_SUBJECTS)
        (kl,) = result.stages
        return {
            "kl_before": kl.validation_before,
            "kl_after": kl.validation_after,
            "recall": recall,
            "seconds": seconds,
        }

    def _save(self) -> None:
        write_result(self._options.output, self._name, self._result)

    def report(self) -> None:
        """Print the tables."""
        greedy = self._result["greedy"]
        if greedy:
            ratios = [
                lazy / plain
                for lazy, plain in zip(greedy["lazy"]["kl"], greedy["plain"]["kl"], strict=True)
            ]
            console.table(
                ["greedy selection", "runs", "seconds", "largest KL, relative to plain greedy"],
                [
                    (name, f"{greedy[name]['runs']:.1f}", f"{greedy[name]['seconds']:.0f}", worst)
                    for name, worst in (("plain", "1.000"), ("lazy", f"{max(ratios):.3f}"))
                ],
                title=f"{greedy['blocks']} attention blocks, "
                f"{self._options.calibration_tokens:,} tokens",
            )
        if self._result["rows"]:
            console.table(
                ["attention", "selection", "kept", "KL before", "KL after", "recall", "forwards"],
                [
                    (
                        row["attention"],
                        row["selection"],
                        ",".join(map(str, row["kept"])),
                        f"{row['kl_before']:.3f}",
                        f"{row['kl_after']:.3f}",
                        f"{row['recall']:.1%}",
                        f"{row['forwards']:.1f}" if row["forwards"] else "-",
                    )
                    for row in self._result["rows"]
                ],
                title=f"After {self._options.tokens:,} tokens",
                caption="KL from the original in nats per token, before and after distillation. "
                "Recall: accuracy after it.",
            )


@torch.no_grad()
def plain_greedy(
    teacher: HybridForCausalLM, mixers: dict[int, Mamba2], dataset: PackedDataset
) -> list[float]:
    """Return the KL divergence after each swap. Every run is one of the whole model."""
    blocks, left = teacher.model.blocks, sorted(mixers)
    attention = {index: blocks[index].mixer for index in left}
    probes = list(kl_probes(teacher, dataset))
    divergences = []
    while left:
        costs = {}
        for index in left:
            blocks[index].mixer = mixers[index]
            costs[index] = sum(p.kl() * p.num_sequences for p in probes) / len(dataset)
            blocks[index].mixer = attention[index]
        cheapest = min(costs, key=costs.__getitem__)
        blocks[cheapest].mixer = mixers[cheapest]
        left.remove(cheapest)
        divergences.append(costs[cheapest])
    for index, mixer in attention.items():
        blocks[index].mixer = mixer
    return divergences


def accuracy_of(model: Any) -> float:
    """Return the accuracy over all questions of a model's tasks."""
    found = [m for m in model.metrics if m.metric == "acc" and not m.is_group]
    return float(sum(m.value * m.questions for m in found) / sum(m.questions for m in found))


if __name__ == "__main__":
    main()
