"""The figures of a report, each made where its data are there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hybridize.console import size_in_words
from hybridize.evals.report.charts import Axis, Bar, BarChart, Chart, Series, XYChart
from hybridize.evals.report.history import Origin
from hybridize.evals.report.sources import Benched, Evaluated, Score, Sources, short

SIGNIFICANT = 0.05
_MOST_SUBJECTS = 60


@dataclass(frozen=True)
class Figure:
    """A picture, what it says, and where its data come from."""

    title: str
    text: str
    chart: Chart
    origins: tuple[Origin, ...]

    @property
    def made_by(self) -> str:
        """The sentence below it."""
        return f"Made by {'; '.join(str(origin) for origin in dict.fromkeys(self.origins))}."

    @property
    def slug(self) -> str:
        """The title as part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def headline(model: Evaluated) -> Score | None:
    """Return the score that stands for a model: that of its first whole task."""
    return next((score for score in model.scores if score.headline), None)


def figures(sources: Sources) -> Iterator[Figure]:
    """Make every figure that there are data for."""
    yield from _accuracy_against_speed(sources)
    yield from _recovery(sources)
    yield from _memory(sources)
    yield from _speed_over_length(sources)
    yield from _sensitivity(sources)
    yield from _importance(sources)
    yield from _losses(sources)
    yield from _subjects(sources)


def fastest_setting(benched: list[Benched]) -> list[Benched]:
    """Return the rows at the longest prompt and largest batch, each model once."""
    if not benched:
        return []
    batch = max(row.batch_size for row in benched)
    length = max(row.prompt_len for row in benched if row.batch_size == batch)
    rows: dict[str, Benched] = {}
    for row in benched:
        if (row.batch_size, row.prompt_len) == (batch, length):
            rows.setdefault(short(row.model), row)
    return list(rows.values())


def _accuracy_against_speed(sources: Sources) -> Iterator[Figure]:
    speeds = {short(row.model): row for row in fastest_setting(sources.benched)}
    points, labels, origins = [], [], []
    task = ""
    for model in sources.evaluated:
        score, row = headline(model), speeds.get(short(model.model))
        if score is None or row is None or (task and score.task != task):
            continue
        task = score.task
        points.append((row.decode, 100 * score.value))
        labels.append(short(model.model))
        origins += [model.origin, row.origin]
    if len(points) < 2:
        return
    row = next(iter(speeds.values()))
    yield Figure(
        "Accuracy against speed",
        f"Up and to the right is better. {task}, against new tokens per second after "
        f"{row.prompt_len:,} tokens at batch {row.batch_size}.",
        XYChart(
            [Series("", points, labels)],
            Axis("new tokens per second", zero=True),
            Axis(f"{task}, percent"),
            lines=False,
        ),
        tuple(origins),
    )


def _recovery(sources: Sources) -> Iterator[Figure]:
    scored = [(model, headline(model)) for model in sources.evaluated]
    found = [(m, s) for m, s in scored if s is not None and s.recovery is not None]
    tasks = {score.task for _, score in found}
    if len(found) < 2 or len(tasks) > 1:
        return
    yield Figure(
        "Recovery, step by step",
        f"Accuracy in {tasks.pop()} as a share of the baseline's, in the order of the evaluation.",
        BarChart(
            [Bar(short(m.model), 100 * (s.recovery or 0.0)) for m, s in found],
            Axis("percent of the baseline's accuracy"),
        ),
        tuple(model.origin for model, _ in found),
    )


def _subjects(sources: Sources) -> Iterator[Figure]:
    for model in sources.evaluated:
        parts = [s for s in model.scores if not s.is_group and s.difference is not None]
        if len(parts) < 2:
            continue
        bars = []
        for score in sorted(parts, key=lambda s: s.difference or 0.0)[:_MOST_SUBJECTS]:
            assert score.difference is not None
            reach = 1.96 * (score.stderr or 0.0)
            low, high = score.difference - reach, score.difference + reach
            sure = score.p_value is not None and score.p_value < SIGNIFICANT
            bars.append(Bar(score.label, 100 * score.difference, (100 * low, 100 * high), sure))
        left_out = len(parts) - len(bars)
        yield Figure(
            f"What {short(model.model)} lost and gained, subject by subject",
            "Percentage points against the baseline, with 95% of the model's own sampling error. "
            f"Full color where p < {SIGNIFICANT} in McNemar's exact test on the same questions, "
            f"not corrected for the number of subjects."
            + (f" {left_out} more are not shown." if left_out else ""),
            BarChart(bars, Axis("percentage points", form=_signed)),
            (model.origin,),
        )


def _speed_over_length(sources: Sources) -> Iterator[Figure]:
    if len({row.prompt_len for row in sources.benched}) < 2:
        return
    for attribute, title in (("prefill", "Reading a prompt"), ("decode", "Writing")):
        yield Figure(
            f"{title}: speed over context length",
            "Tokens per second of all sequences together; medians.",
            XYChart(
                _by_model(sources.benched, attribute),
                Axis("prompt length, tokens", log=True, form="{:,.0f}".format),
                Axis("tokens per second", zero=True, form="{:,.0f}".format),
            ),
            tuple(row.origin for row in sources.benched),
        )


def _memory(sources: Sources) -> Iterator[Figure]:
    if len({row.prompt_len for row in sources.benched}) < 2:
        return
    yield Figure(
        "Memory against context length",
        "Keys, values and states of one batch at the end of a run.",
        XYChart(
            _by_model(sources.benched, "cache_bytes"),
            Axis("prompt length, tokens", log=True, form="{:,.0f}".format),
            Axis("", zero=True, form=size_in_words, base=1024),
        ),
        tuple(row.origin for row in sources.benched),
    )


def _by_model(benched: list[Benched], attribute: str) -> list[Series]:
    lines: dict[str, dict[float, float]] = {}
    backends = len({row.backend for row in benched}) > 1
    batches = len({row.batch_size for row in benched}) > 1
    for row in benched:
        name = short(row.model)
        name += f" ({row.backend})" if backends else ""
        name += f", batch {row.batch_size}" if batches else ""
        lines.setdefault(name, {})[row.prompt_len] = float(getattr(row, attribute))
    return [Series(name, sorted(points.items())) for name, points in lines.items()]


def _losses(sources: Sources) -> Iterator[Figure]:
    for model in sources.trained:
        for stage, points in model.losses.items():
            if len(points) > 1:
                unit = "nats per token" if stage == "kl" else "share of the power"
                yield Figure(
                    f"Distilling {model.model}: {stage}",
                    "The loss on rows that were held out.",
                    XYChart(
                        [Series(stage, points)],
                        Axis("step", form="{:,.0f}".format),
                        Axis(unit, zero=True),
                    ),
                    (model.origin,),
                )


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _sensitivity(sources: Sources) -> Iterator[Figure]:
    shown = set()
    for model in sources.trained:
        for choice in model.choices:
            if choice.curve in shown or len(choice.curve) < 2:
                continue
            shown.add(choice.curve)
            kept = ", ".join(map(str, choice.kept)) or "none"
            chosen = [point for point in choice.curve if point[0] == len(choice.kept)]
            yield Figure(
                f"Which attention matters: {model.model}",
                "Divergence from the original with the best choice of so many attention blocks, "
                f"before distillation. Kept were, counted from 0: {kept}.",
                XYChart(
                    [Series("best choice", sorted(choice.curve)), Series("kept", chosen)],
                    Axis("attention blocks kept", form="{:,.4g}".format),
                    Axis("KL, nats per token", zero=True),
                ),
                (choice.origin,),
            )


def _importance(sources: Sources) -> Iterator[Figure]:
    for found in sources.importance:
        if not found.blocks:
            continue
        kinds = list(dict.fromkeys(found.kinds))
        yield Figure(
            f"What each block is worth: {found.origin.file}",
            "Nats per token by which the divergence from the model grows when a block is skipped.",
            BarChart(
                [
                    Bar(f"{place} {kind}", worth, color=kinds.index(kind))
                    for place, (kind, worth) in enumerate(
                        zip(found.kinds, found.blocks, strict=True)
                    )
                ],
                Axis("KL when skipped, nats per token", log=True, form="{:,.2g}".format),
                legend=kinds if len(kinds) > 1 else (),
            ),
            (found.origin,),
        )
