"""The HTML page around a report's figures, without scripts and without external resources."""

from collections.abc import Sequence
from html import escape

from hybridize.evals.report.figures import Figure, headline, largest_setting
from hybridize.evals.report.layout import lay_out
from hybridize.evals.report.sources import Sources, short_name
from hybridize.evals.report.style import STYLE
from hybridize.evals.report.svg import to_svg
from hybridize.units import size_in_words


def page(sources: Sources, drawn: Sequence[Figure], title: str) -> str:
    """Return the whole report as one HTML document."""
    body = [f"<h1>{escape(title)}</h1>", _summary(sources)]
    for figure in drawn:
        picture = to_svg(lay_out(figure.chart))
        body.append(
            f"<section><h2>{escape(figure.title)}</h2><p>{escape(figure.text)}</p>"
            f"<figure>{picture}<figcaption>{escape(figure.made_by)}</figcaption></figure></section>"
        )
    body.append(_histories(sources))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _summary(sources: Sources) -> str:
    """Return the table of all models, one row per model."""
    speeds = {short_name(row.model): row for row in largest_setting(sources.benched)}
    scored = {short_name(model.model): model for model in sources.evaluated}
    rows = []
    for name in dict.fromkeys([*scored, *speeds]):
        model, speed = scored.get(name), speeds.get(name)
        score = None if model is None else headline(model)
        rows.append(
            [
                name + (" (baseline)" if model is not None and model.is_baseline else ""),
                "-" if score is None else f"{score.value:.1%}",
                "-" if score is None or score.recovery is None else f"{score.recovery:.1%}",
                "-" if model is None or model.perplexity is None else f"{model.perplexity:,.2f}",
                "-" if speed is None else f"{speed.decode:,.0f}",
                "-"
                if speed is None or speed.decode_ratio is None
                else f"{speed.decode_ratio:.2f} ×",
                "-" if speed is None else size_in_words(speed.cache_bytes),
            ]
        )
    if not rows:
        return ""
    columns = ["model", "accuracy", "recovery", "perplexity", "new tokens/s", "speed", "cache"]
    notes = []
    exams = dict.fromkeys(s.label for m in sources.evaluated if (s := headline(m)) is not None)
    if exams:
        notes.append(f"Accuracy on: {', '.join(exams)}.")
    if speeds:
        row = next(iter(speeds.values()))
        notes.append(
            f"Speed and cache after {row.prompt_len:,} prompt tokens, batch size {row.batch_size}."
        )
    notes.append("Recovery and speed are relative to the baseline.")
    note = f'<p class="soft">{escape(" ".join(notes))}</p>'
    shown = [n for n in range(len(columns)) if any(row[n] != "-" for row in rows)]
    cells = [[row[n] for n in shown] for row in rows]
    return _table([columns[n] for n in shown], cells) + note


def _histories(sources: Sources) -> str:
    """Return a table for each checkpoint, with the commands that led to it."""
    parts = []
    for model in sources.trained:
        rows = [
            [str(number), f"hybridize {command}", source, when]
            for number, (command, source, when) in enumerate(model.history, 1)
        ]
        parts.append(f"<h2>History of {escape(model.model)}</h2>")
        parts.append(_table(["", "command", "source", "time"], rows, "plain"))
    return "".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'
