"""The results of an evaluation."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Keys in lm-eval's results that are not metrics.
_NOT_METRICS = {"name", "alias", "sample_len", "sample_count"}

Key = tuple[str, str, str]
"""Task, metric and filter, which together identify one value."""


@dataclass(frozen=True)
class Metric:
    """One metric of one task or group of tasks.

    Attributes:
        task: lm-eval's name, such as ``mmlu_anatomy``.
        label: the name to show, such as ``anatomy``. For the group ``mmlu`` of a local exam that is
            not MMLU, it is the exam's name.
        depth: the number of groups that contain the task.
        is_group: whether the task is a group of tasks.
        metric: the name of the metric, such as ``acc``.
        filter: how lm-eval extracted the answers; ``none`` for multiple choice.
        value: the value of the metric; accuracies are between 0 and 1.
        stderr: its standard error; None if lm-eval gives none.
        questions: the number of questions.
        num_fewshot: the number of solved questions in each prompt; None if it differs in a group.
        higher_is_better: whether higher values are better; None if lm-eval does not say.
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
        """The identity of the value."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a model on a text.

    Attributes:
        file: the text's file.
        bytes: the text's length in UTF-8.
        words: the text's length in words, which whitespace separates.
        tokens: the text's length in the model's tokens; each was scored once.
        window: the maximum number of tokens that the model saw.
        nats_per_token: the mean negative log-likelihood of a token.
    """

    file: str
    bytes: int
    words: int
    tokens: int
    window: int
    nats_per_token: float

    @property
    def perplexity(self) -> float:
        """Per token, so it can only compare models with the same tokenizer."""
        return exp(self.nats_per_token)

    @property
    def word_perplexity(self) -> float:
        """Per word of text, as lm-eval defines it, so it can compare any two models."""
        return exp(self.nats_per_token * self.tokens / self.words)

    @property
    def bits_per_byte(self) -> float:
        """Per byte of text, so it can compare any two models."""
        return self.nats_per_token * self.tokens / self.bytes / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """Return all values by name."""
        figures = {
            "perplexity": self.perplexity,
            "word_perplexity": self.word_perplexity,
            "bits_per_byte": self.bits_per_byte,
        }
        return asdict(self) | figures


@dataclass(frozen=True)
class Comparison:
    """One metric of a model, relative to the baseline.

    Attributes:
        task: lm-eval's name.
        metric: the name of the metric.
        filter: how lm-eval extracted the answers.
        difference: the model's value minus the baseline's.
        recovery: the model's value divided by the baseline's; None if that is 0.
        p_value: the p-value of the exact McNemar test on the same questions; None if scores are not
            all 0 or 1.
    """

    task: str
    metric: str
    filter: str
    difference: float
    recovery: float | None
    p_value: float | None

    @property
    def key(self) -> Key:
        """The identity of the value."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True)
class ModelResult:
    """The results of one model.

    Attributes:
        model: its directory or hub id, as given.
        dtype: the dtype of its weights.
        device: the device that ran it.
        metrics: all metrics in lm-eval's order, each group before its members.
        perplexity: the perplexity on the given text; None without a text.
        prompts: the number of different prompts that were scored.
        truncated_prompts: the number of those that were longer than the model's context and lost
            their beginning.
        seconds: the time it took, loading included.
        comparisons: the comparisons with the baseline; empty for the baseline, and without one.
        perplexity_ratio: the perplexity divided by the baseline's.
        lm_eval: lm-eval's own results, as its command would write them.
        scores: for each metric of a task, the score of each question by its number.
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
        """Return the results, without lm-eval's own and without the scores of questions."""
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
    """The results of `hybridize.evaluate`.

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
        """Return everything that the tables show, for JSON."""
        return {
            "baseline": self.baseline,
            "exam": self.exam,
            "options": self.options,
            "models": [model.to_dict() for model in self.models],
        }


def exp(nats: float) -> float:
    """Return e to the power of ``nats``; infinity if that overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def read_metrics(results: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Collect the metrics in lm-eval's results, each group before its members."""
    return tuple(
        metric for task, depth in _walk(results) for metric in _metrics_of(task, depth, results)
    )


def read_scores(samples: Mapping[str, Any]) -> dict[Key, dict[int, Any]]:
    """Collect the scores of all questions from lm-eval's logged samples, by task."""
    scores: dict[Key, dict[int, Any]] = {}
    for task, samples_of_task in samples.items():
        for sample in samples_of_task:
            for metric in sample["metrics"]:
                by_question = scores.setdefault((task, metric, sample["filter"]), {})
                by_question[sample["doc_id"]] = sample[metric]
    return scores


def tasks_in(task: str, subtasks: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the tasks in the group ``task``, or ``task`` itself if it is not a group."""
    if task not in subtasks:
        yield task
    for member in subtasks.get(task, ()):
        yield from tasks_in(member, subtasks)


def _without_infinities(value: Any) -> Any:
    """Return ``value`` with None instead of infinity and NaN, which JSON does not have."""
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
            label=_label(figures.get("alias", task)),
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


def _label(alias: str) -> str:
    """Return an alias of lm-eval as words; an alias that has spaces is not changed.

    A group that has no file of its own is called ``GROUP::NAME``; the label is ``NAME``.
    """
    alias = alias.strip().rpartition("::")[2]
    return alias if " " in alias else alias.replace("_", " ")
