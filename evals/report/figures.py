"""The figures of a report. A figure is drawn if the sources have the data for it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hybridize.evals.report.charts import Axis, Bar, BarChart, Chart, Series, XYChart
from hybridize.evals.report.sources import (
    Benched,
    Evaluated,
    Origin,
    Score,
    Sources,
    short_name,
)
from hybridize.units import size_in_words

SIGNIFICANT = 0.05
_MAX_SUBJECTS = 60


@dataclass(frozen=True)
class Figure:
    """A chart with its title, a text about it, and the origins of its data."""

    title: str
    text: str
    chart: Chart
    origins: tuple[Origin, ...]

    @property
    def made_by(self) -> str:
        """The sentence below the chart."""
        return f"Made by {'; '.join(str(origin) for origin in dict.fromkeys(self.origins))}."

    @property
    def slug(self) -> str:
        """The title, spelled for a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def headline(model: Evaluated) -> Score | None:
    """Return the score that represents a model: that of its first whole task."""
    return next((score for score in model.scores if score.headline), None)


def figures(sources: Sources) -> Iterator[Figure]:
    """Yield every figure for which the sources have data."""
    yield from _accuracy_against_speed(sources)
    yield from _recovery(sources)
    yield from _memory(sources)
    yield from _speed_over_length(sources)
    yield from _sensitivity(sources)
    yield from _importance(sources)
    yield from _losses(sources)
    yield from _subjects(sources)


def largest_setting(benched: list[Benched]) -> list[Benched]:
    """Return the rows at the largest batch and its longest prompt, one row per model."""
    if not benched:
        return []
    batch = max(row.batch_size for row in benched)
    length = max(row.prompt_len for row in benched if row.batch_size == batch)
    rows: dict[str, Benched] = {}
    for row in benched:
        if (row.batch_size, row.prompt_len) == (batch, length):
            rows.setdefault(short_name(row.model), row)
    return list(rows.values())


def _accuracy_against_speed(sources: Sources) -> Iterator[Figure]:
    speeds = {short_name(row.model): row for row in largest_setting(sources.benched)}
    points, labels, origins = [], [], []
    exam = ""
    for model in sources.evaluated:
        score, row = headline(model), speeds.get(short_name(model.model))
        if score is None or row is None or (exam and score.label != exam):
            continue
        exam = score.label
        points.append((row.decode, 100 * score.value))
        labels.append(short_name(model.model))
        origins += [model.origin, row.origin]
    if len(points) < 2:
        return
    row = next(iter(speeds.values()))
    yield Figure(
        "Accuracy against speed",
        f"Up and to the right is better. Accuracy on: {exam}. Speed: new tokens per second after "
        f"{row.prompt_len:,} prompt tokens, batch size {row.batch_size}.",
        XYChart(
            [Series("", points, labels)],
            Axis("new tokens per second", from_zero=True),
            Axis(f"{exam}, percent"),
            lines=False,
        ),
        tuple(origins),
    )


def _recovery(sources: Sources) -> Iterator[Figure]:
    scored = [(model, headline(model)) for model in sources.evaluated]
    found = [(m, s) for m, s in scored if s is not None and s.recovery is not None]
    exams = {score.label for _, score in found}
    if len(found) < 2 or len(exams) > 1:
        return
    yield Figure(
        "Recovery, model by model",
        f"Accuracy as a percentage of the baseline's, on: {exams.pop()}.",
        BarChart(
            [Bar(short_name(m.model), 100 * (s.recovery or 0.0)) for m, s in found],
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
        for score in sorted(parts, key=lambda s: s.difference or 0.0)[:_MAX_SUBJECTS]:
            assert score.difference is not None
            reach = 1.96 * (score.stderr or 0.0)
            low, high = score.difference - reach, score.difference + reach
            significant = score.p_value is not None and score.p_value < SIGNIFICANT
            interval = (100 * low, 100 * high)
            bars.append(Bar(score.label, 100 * score.difference, interval, significant))
        left_out = len(parts) - len(bars)
        yield Figure(
            f"Accuracy by subject: {short_name(model.model)} against the baseline",
            "Difference in percentage points, with the 95% interval of the model's own sampling "
            f"error. Full color: p < {SIGNIFICANT} in McNemar's exact test on the same questions, "
            "not corrected for the number of subjects."
            + (f" {left_out} more subjects are not shown." if left_out else ""),
            BarChart(bars, Axis("percentage points", format_tick=_signed)),
            (model.origin,),
        )


def _speed_over_length(sources: Sources) -> Iterator[Figure]:
    if len({row.prompt_len for row in sources.benched}) < 2:
        return
    for attribute, title in (("prefill", "Prefill"), ("decode", "Decoding")):
        yield Figure(
            f"{title} speed over prompt length",
            "Tokens per second of the whole batch; medians.",
            XYChart(
                _by_model(sources.benched, attribute),
                Axis("prompt length, tokens", log=True, format_tick="{:,.0f}".format),
                Axis("tokens per second", from_zero=True, format_tick="{:,.0f}".format),
            ),
            tuple(row.origin for row in sources.benched),
        )


def _memory(sources: Sources) -> Iterator[Figure]:
    if len({row.prompt_len for row in sources.benched}) < 2:
        return
    yield Figure(
        "Cache size over prompt length",
        "Keys, values and states of the whole batch at the end of a run.",
        XYChart(
            _by_model(sources.benched, "cache_bytes"),
            Axis("prompt length, tokens", log=True, format_tick="{:,.0f}".format),
            Axis("", from_zero=True, format_tick=size_in_words, base=1024),
        ),
        tuple(row.origin for row in sources.benched),
    )


def _by_model(benched: list[Benched], attribute: str) -> list[Series]:
    lines: dict[str, dict[float, float]] = {}
    backends = len({row.backend for row in benched}) > 1
    batches = len({row.batch_size for row in benched}) > 1
    for row in benched:
        name = short_name(row.model)
        name += f" ({row.backend})" if backends else ""
        name += f", batch {row.batch_size}" if batches else ""
        lines.setdefault(name, {})[row.prompt_len] = float(getattr(row, attribute))
    return [Series(name, sorted(points.items())) for name, points in lines.items()]


def _losses(sources: Sources) -> Iterator[Figure]:
    for model in sources.trained:
        for stage, points in model.losses.items():
            if len(points) > 1:
                unit = "nats per token" if stage == "kl" else "error relative to the output's power"
                yield Figure(
                    f"Distillation of {model.model}: {stage}",
                    "Loss on held-out sequences.",
                    XYChart(
                        [Series(stage, points)],
                        Axis("step", format_tick="{:,.0f}".format),
                        Axis(unit, from_zero=True),
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
                f"Cost of fewer attention blocks: {model.model}",
                "KL divergence from the original with the best choice of that many attention "
                f"blocks, before distillation. Kept blocks, numbered from 0: {kept}.",
                XYChart(
                    [Series("best choice", sorted(choice.curve)), Series("kept", chosen)],
                    Axis("attention blocks kept", format_tick="{:,.4g}".format),
                    Axis("KL, nats per token", from_zero=True),
                ),
                (choice.origin,),
            )


def _importance(sources: Sources) -> Iterator[Figure]:
    for found in sources.importance:
        if not found.blocks:
            continue
        kinds = list(dict.fromkeys(found.kinds))
        yield Figure(
            f"Importance of each block: {found.origin.file}",
            "KL divergence from the whole model when a block is skipped.",
            BarChart(
                [
                    Bar(f"{block_idx} {kind}", divergence, color=kinds.index(kind))
                    for block_idx, (kind, divergence) in enumerate(
                        zip(found.kinds, found.blocks, strict=True)
                    )
                ],
                Axis("KL, nats per token", log=True, format_tick="{:,.2g}".format),
                legend=kinds if len(kinds) > 1 else (),
            ),
            (found.origin,),
        )
