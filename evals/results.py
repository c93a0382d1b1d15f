"""What an evaluation found, as plain figures."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# In lm-eval's results beside the metrics.
_NOT_METRICS = {"name", "alias", "sample_len", "sample_count"}

Key = tuple[str, str, str]
"""Task, metric and filter, which together name one figure."""


@dataclass(frozen=True)
class Metric:
    """One figure of one task or group of tasks.

    Attributes:
        task: lm-eval's name, such as ``mmlu_anatomy``.
        label: a name to show, such as ``anatomy``.
        depth: how many groups it is inside of.
        is_group: whether it sums up other tasks.
        metric: what was measured, such as ``acc``.
        filter: how answers were read before they were scored; ``none`` for multiple choice.
        value: the figure; accuracies lie between 0 and 1.
        stderr: its standard error, None where lm-eval has none.
        questions: how many questions it rests on.
        num_fewshot: how many answered questions each prompt showed, None where members differ.
        higher_is_better: which way is up, where lm-eval says so.
    """

    task: str
    label: str
    depth: int
    is_group: bool
    metric: str
    filter: str
    value: float
    stderr: float | None
    questions: int
    num_fewshot: int | None
    higher_is_better: bool | None

    @property
    def key(self) -> Key:
        """What names the figure."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True)
class Perplexity:
    """How well a text is predicted.

    Attributes:
        file: the text's file.
        bytes: its length in UTF-8.
        tokens: its length in tokens of the model's; each was scored once.
        window: how many tokens the model saw at most.
        nats_per_token: the mean negative log-likelihood of a token.
    """

    file: str
    bytes: int
    tokens: int
    window: int
    nats_per_token: float

    @property
    def perplexity(self) -> float:
        """Per token, so it compares models with the same tokenizer only."""
        return exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Per byte of text, which compares any two models."""
        return self.nats_per_token * self.tokens / self.bytes / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        figures = {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        return asdict(self) | figures


@dataclass(frozen=True)
class Comparison:
    """One figure of a model beside the baseline's.

    Attributes:
        task: lm-eval's name.
        metric: what was measured.
        filter: how answers were read before they were scored.
        difference: the model's figure less the baseline's.
        recovery: the model's figure over the baseline's, None where that is 0.
        p_value: of the exact McNemar test on the same questions; None where scores are not 0 or 1.
    """

    task: str
    metric: str
    filter: str
    difference: float
    recovery: float | None
    p_value: float | None

    @property
    def key(self) -> Key:
        """What names the figure."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True)
class ModelResult:
    """What was found about one model.

    Attributes:
        model: its directory or hub id, as given.
        dtype: what its weights were held in.
        device: where it ran.
        metrics: figures in lm-eval's order, each group before its members.
        perplexity: on a text, if one was given.
        prompts: how many different prompts were scored.
        truncated_prompts: how many of them were longer than the model's context and lost their
            beginning.
        seconds: how long it took, loading included.
        comparisons: against the baseline; empty where there is none, and for itself.
        perplexity_ratio: perplexity over the baseline's.
        lm_eval: lm-eval's own results, as its command would write them.
        scores: for each figure of a task, the score of each question by its number.
    """

    model: str
    dtype: str
    device: str
    metrics: tuple[Metric, ...]
    perplexity: Perplexity | None
    prompts: int
    truncated_prompts: int
    seconds: float
    comparisons: tuple[Comparison, ...] = ()
    perplexity_ratio: float | None = None
    lm_eval: dict[str, Any] = field(default_factory=dict, repr=False)
    scores: Mapping[Key, Mapping[int, Any]] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without lm-eval's results and the single questions."""
        figures = {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "metrics": [asdict(metric) for metric in self.metrics],
            "perplexity": self.perplexity and self.perplexity.to_dict(),
            "prompts": self.prompts,
            "truncated_prompts": self.truncated_prompts,
            "seconds": round(self.seconds, 3),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "perplexity_ratio": self.perplexity_ratio,
        }
        return _without_infinities(figures)


@dataclass(frozen=True)
class EvaluationResult:
    """What `hybridize.evaluate` found.

    Attributes:
        models: one result per model, the baseline first if there is one.
        baseline: the model that the others are compared with.
        exam: the name of the exam read from ``mmlu_dir``, see `exam_name`; None without one.
        options: the options of the evaluation.
    """

    models: tuple[ModelResult, ...]
    baseline: str | None
    exam: str | None
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything that the tables show, ready for JSON."""
        return {
            "baseline": self.baseline,
            "exam": self.exam,
            "options": self.options,
            "models": [model.to_dict() for model in self.models],
        }


def exp(nats: float) -> float:
    """Return e to the ``nats``, infinity where that is too large to write."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def read_metrics(results: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Collect the figures in lm-eval's results, each group before its members."""
    return tuple(
        metric for task, depth in _walk(results) for metric in _metrics_of(task, depth, results)
    )


def read_scores(results: Mapping[str, Any]) -> dict[Key, dict[int, Any]]:
    """Collect the scores of single questions from lm-eval's logged samples."""
    scores: dict[Key, dict[int, Any]] = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                by_question = scores.setdefault((task, metric, sample["filter"]), {})
                by_question[sample["doc_id"]] = sample[metric]
    return scores


def tasks_in(task: str, subtasks: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the tasks that ``task`` sums up: those of a group, or itself."""
    if task not in subtasks:
        yield task
    for member in subtasks.get(task, ()):
        yield from tasks_in(member, subtasks)


def _without_infinities(value: Any) -> Any:
    """Return ``value`` with None for each float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _walk(results: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    subtasks = results["group_subtasks"]
    members = {member for group in subtasks.values() for member in group}

    def below(task: str, depth: int) -> Iterator[tuple[str, int]]:
        yield task, depth
        for member in subtasks.get(task, ()):
            yield from below(member, depth + 1)

    for task in results["results"]:
        if task not in members:
            yield from below(task, 0)


def _metrics_of(task: str, depth: int, results: Mapping[str, Any]) -> Iterator[Metric]:
    figures = results["results"][task]
    for name, value in figures.items():
        metric, _, filter_name = name.partition(",")
        if name in _NOT_METRICS or metric.endswith("_stderr") or isinstance(value, str):
            continue
        stderr = figures.get(f"{metric}_stderr,{filter_name}")
        yield Metric(
            task=task,
            label=figures.get("alias", task).strip().replace("_", " "),
            depth=depth,
            is_group=task in results["group_subtasks"],
            metric=metric,
            filter=filter_name,
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            questions=figures.get("sample_len", 0),
            num_fewshot=results["n-shot"].get(task),
            higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
        )
