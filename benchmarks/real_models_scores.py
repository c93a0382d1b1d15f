"""What `real_models.py` measures on a checkpoint."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize import evaluate
from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.data.kl import measure_kl
from hybridize.data.load_text import load_packed_dataset
from hybridize.evals.bench.results import Point
from hybridize.evals.bench.runner import Runner, Sample
from hybridize.evals.bench.summary import compare_samples, summarize

GENERATED = 32
"""New tokens per measurement of the decoding speed."""

_ROUNDS_BELOW = {4096: 3, 16384: 2}
"""Measured rounds for contexts up to a length; longer ones take minutes and get one round."""


@dataclass(frozen=True)
class QualitySettings:
    """What is measured at every milestone.

    Attributes:
        text: the held-out text.
        window: tokens that the model sees at once in that text.
        kl_tokens: tokens of the text on which the KL divergence is measured.
        recall: tasks of `hybridize.evals.recall_tasks`.
        recall_questions: questions of each.
        batch_size: prompts in a forward pass.
        device: where to compute.
    """

    text: Path
    window: int
    kl_tokens: int
    recall: tuple[str, ...]
    recall_questions: int
    batch_size: int
    device: str


def quality(checkpoint: Path, original: Path, settings: QualitySettings) -> dict[str, Any]:
    """Measure the KL from the original, the perplexity and the recall of a checkpoint.

    Returns:
        ``kl`` in nats per token (0 for the original itself), ``perplexity``,
        ``nats_per_token``, ``recall`` (accuracies by task), and the seconds of each.
    """
    started = time.perf_counter()
    kl = 0.0 if checkpoint == original else _kl(checkpoint, original, settings)
    kl_seconds = time.perf_counter() - started
    text = _evaluated(
        checkpoint, settings, tasks=(), perplexity=str(settings.text), max_length=settings.window
    )
    result: dict[str, Any] = {
        "kl": kl,
        "nats_per_token": text.perplexity.nats_per_token,
        "perplexity": text.perplexity.perplexity,
        "perplexity_tokens": text.perplexity.tokens,
        "seconds": {"kl": kl_seconds, "perplexity": text.seconds},
    }
    if settings.recall:
        found = _evaluated(
            checkpoint, settings, tasks=settings.recall, limit=settings.recall_questions
        )
        result["recall"] = {m.task: m.value for m in found.metrics if m.metric == "acc"}
        result["seconds"]["recall"] = found.seconds
    return result


def mmlu(
    checkpoint: Path, directory: Path, limit: int, settings: QualitySettings
) -> dict[str, Any]:
    """Measure the accuracy in `mmlu_continuation`, all subjects together.

    Args:
        checkpoint: the model.
        directory: MMLU's CSV files.
        limit: questions per subject.
        settings: the batch size and the device.
    """
    found = _evaluated(
        checkpoint,
        settings,
        tasks=("mmlu_continuation",),
        mmlu_dir=str(directory),
        limit=limit,
        num_fewshot=0,  # as lm-eval's task has it; five solved questions take seven times the time
    )
    keys = sorted(key for key in found.scores if key[1] == "acc")
    outcomes = [found.scores[key][number] for key in keys for number in sorted(found.scores[key])]
    leaves = [m for m in found.metrics if m.metric == "acc" and not m.is_group]
    questions = sum(m.questions for m in leaves)
    accuracy = sum(m.value * m.questions for m in leaves) / questions
    return {
        "accuracy": accuracy,
        "stderr": math.sqrt(accuracy * (1 - accuracy) / questions),
        "questions": questions,
        "limit": limit,
        "num_fewshot": 0,
        # 1 for each right answer, in the same order for all models: for paired comparisons.
        "outcomes": "".join(str(int(outcome)) for outcome in outcomes),
    }


def speed(
    original: Path, hybrid: Path, contexts: Sequence[int], device: str
) -> list[dict[str, Any]]:
    """Measure prefill, decoding and memory of both models in turn, at each length of the context.

    One sequence, float32 on a CPU. Nothing is measured in the first round of the first context.

    Returns:
        One row per context and model: tokens/s with their quartiles, bytes, and the ratios to the
        original, computed within each round.
    """
    runners = []
    for name, directory in (("original", original), ("hybrid", hybrid)):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = load_model(directory, dtype=dtype, device=device)
        runners.append(Runner(name, "hybridize", model))
    warm_up = Point(min(contexts), GENERATED, 1)
    for runner in runners:
        runner.run(warm_up, seed=0)
    rows = []
    for context in contexts:
        console.message(f"speed at {context:,} tokens")
        point = Point(context, GENERATED, 1)
        rounds = next((n for below, n in _ROUNDS_BELOW.items() if context <= below), 1)
        samples: list[list[Sample]] = [[] for _ in runners]
        for number in range(rounds):
            for runner, measured in zip(runners, samples, strict=True):
                measured.append(runner.run(point, seed=number))
        for runner, measured in zip(runners, samples, strict=True):
            ratios = compare_samples(measured, samples[0], 1.0)
            rows.append(_speed_row(runner, point, measured, ratios))
    return rows


def _speed_row(runner: Runner, point: Point, samples: list[Sample], ratios: Any) -> dict[str, Any]:
    row = summarize(runner, point, samples, ratios)
    return {
        "model": runner.name,
        "context": point.prompt_len,
        "rounds": len(samples),
        "prefill": _spread(row.prefill),
        "decode": _spread(row.decode),
        "prefill_ratio": ratios.prefill.median,
        "decode_ratio": ratios.decode.median,
        "cache_bytes": row.kv_bytes + row.state_bytes,
        "peak_bytes": row.peak_bytes,
        "weight_bytes": row.weight_bytes,
    }


def _spread(spread: Any) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def _kl(checkpoint: Path, original: Path, settings: QualitySettings) -> float:
    dataset = load_packed_dataset(
        [str(settings.text)], model=original, length=settings.window, tokens=settings.kl_tokens
    )
    model, teacher = (
        load_model(directory, dtype=torch.float32, device=settings.device)
        for directory in (checkpoint, original)
    )
    return measure_kl(model, teacher, dataset)


def _evaluated(checkpoint: Path, settings: QualitySettings, **options: Any) -> Any:
    """Evaluate one checkpoint; return its `ModelResult`."""
    result = evaluate(
        checkpoint,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype="float32",
        **options,
    )
    return result.models[0]
