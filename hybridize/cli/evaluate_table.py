"""Print the results of an evaluation as tables."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from hybridize.console import console
from hybridize.evals.exam_name import MMLU
from hybridize.evals.results import Comparison, EvaluationResult, Metric, ModelResult

FEW_SUBJECTS = 20
"""With more subjects, the table shows only the groups, unless the user requests all subjects."""

SIGNIFICANT = 0.05

_PERCENTAGES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em"}


def print_result(result: EvaluationResult, *, per_subject: bool = False) -> None:
    """Print a table of scores and a table of perplexities, if there are any.

    Args:
        result: the results.
        per_subject: show every subject of a group, even if there are more than `FEW_SUBJECTS`.
    """
    if result.models[0].metrics:
        _print_scores(result, per_subject)
    if result.models[0].perplexity:
        _print_perplexities(result)


def _print_scores(result: EvaluationResult, per_subject: bool) -> None:
    first, *others = result.models
    names = _short_names(result.models)
    subjects = {metric.task for metric in first.metrics if metric.depth and not metric.is_group}
    show_subjects = per_subject or len(subjects) <= FEW_SUBJECTS
    shown = [
        metric for metric in first.metrics if show_subjects or metric.is_group or not metric.depth
    ]
    columns: list[str] = ["task", "questions", names[0]]
    cells: list[Callable[[Metric], list[str]]] = [_value_cells(first)]
    for name, other in zip(names[1:], others, strict=True):
        columns.append(name)
        cells.append(_value_cells(other))
        if result.baseline is not None:
            columns += ["difference", "recovery"]
            cells.append(_comparison_cells(other))
    rows = [
        [
            _label(metric),
            f"{metric.questions:,}",
            *(cell for show in cells for cell in show(metric)),
        ]
        for metric in shown
    ]
    notes = [*_score_notes(result, shown)]
    if not show_subjects:
        notes.append(f"--per-subject shows all {len(subjects)} subjects")
    console.table(columns, rows, caption="; ".join(notes))


def _print_perplexities(result: EvaluationResult) -> None:
    columns = ["model", "tokens", "window", "nats/token", "perplexity"]
    if result.baseline is not None:
        columns.append("relative to baseline")
    columns += ["per word", "bits/byte"]
    rows = []
    for name, model in zip(_short_names(result.models), result.models, strict=True):
        found = model.perplexity
        if found is None:
            continue
        row = [
            name,
            f"{found.tokens:,}",
            f"{found.window:,}",
            f"{found.nats_per_token:.4f}",
            f"{found.perplexity:.5g}",
        ]
        if result.baseline is not None:
            ratio = model.perplexity_ratio
            row.append("-" if ratio is None else f"{ratio:.4g}")
        row += [f"{found.word_perplexity:.5g}", f"{found.bits_per_byte:.4f}"]
        rows.append(row)
    text = result.models[0].perplexity
    assert text is not None  # the caller has checked
    console.table(columns, rows, caption=f"on {text.file}, {text.bytes:,} bytes")


def _label(metric: Metric) -> str:
    measure = "" if metric.metric == "acc" else f" {metric.metric}"
    answers = "" if metric.filter == "none" else f" ({metric.filter})"
    return "  " * metric.depth + metric.label + measure + answers


def _value_cells(model: ModelResult) -> Callable[[Metric], list[str]]:
    metrics = {metric.key: metric for metric in model.metrics}

    def show(row: Metric) -> list[str]:
        metric = metrics.get(row.key)
        if metric is None:
            return ["-"]
        if metric.metric in _PERCENTAGES:
            error = "" if metric.stderr is None else f" ± {100 * metric.stderr:.1f}"
            return [f"{100 * metric.value:.1f}{error}"]
        error = "" if metric.stderr is None else f" ± {metric.stderr:.2g}"
        return [f"{metric.value:.4g}{error}"]

    return show


def _comparison_cells(model: ModelResult) -> Callable[[Metric], list[str]]:
    comparisons = {comparison.key: comparison for comparison in model.comparisons}

    def show(row: Metric) -> list[str]:
        comparison = comparisons.get(row.key)
        if comparison is None:
            return ["-", "-"]
        return [_difference(comparison), _recovery(comparison, row)]

    return show


def _difference(comparison: Comparison) -> str:
    if comparison.metric in _PERCENTAGES:
        text = f"{100 * comparison.difference:+.1f}"
    else:
        text = f"{comparison.difference:+.4g}"
    return f"{text} *" if _is_significant(comparison) else text


def _recovery(comparison: Comparison, metric: Metric) -> str:
    if comparison.recovery is None:
        return "-"
    if metric.higher_is_better is False:
        return f"{comparison.recovery:.4g} times"
    return f"{100 * comparison.recovery:.1f}%"


def _is_significant(comparison: Comparison) -> bool:
    return comparison.p_value is not None and comparison.p_value < SIGNIFICANT


def _score_notes(result: EvaluationResult, shown: Sequence[Metric]) -> Iterator[str]:
    if any(metric.metric in _PERCENTAGES for metric in shown):
        yield "percent ± standard error"
    shots = sorted({metric.num_fewshot for metric in shown if metric.num_fewshot is not None})
    if shots:
        yield " and ".join(f"{count}-shot" for count in shots)
    if result.exam not in (None, MMLU):
        yield f"tasks named mmlu ask the questions of the {result.exam}, not those of MMLU"
    if any(_is_significant(c) for model in result.models for c in model.comparisons):
        yield (
            f"* p < {SIGNIFICANT} in McNemar's exact test on the same questions, "
            "not corrected for the number of rows"
        )
    for name, model in zip(_short_names(result.models), result.models, strict=True):
        if model.truncated_prompts:
            yield (
                f"{name}: {model.truncated_prompts:,} of {model.prompts:,} prompts were longer "
                "than the model's context and lost their beginning"
            )


def _short_names(models: Sequence[ModelResult]) -> list[str]:
    """Return the last part of each model's path, or the whole path if that part is not unique."""
    last = [PurePath(model.model).name or model.model for model in models]
    times = Counter(last)
    return [
        name if times[name] == 1 else model.model for name, model in zip(last, models, strict=True)
    ]
