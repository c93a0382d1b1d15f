"""The page around a report's figures: HTML and style, nothing fetched and no script."""

from collections.abc import Sequence
from html import escape

from hybridize.console import size_in_words
from hybridize.evals.report.figures import Figure, fastest_setting, headline
from hybridize.evals.report.sources import Sources, short

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2430; --soft: #5d6778;
  --rule: #dfe3e9; --c0: #2f6db3; --c1: #c8553d; --c2: #2e8b6b; --c3: #b7862b; --c4: #7d5ba6;
  --c5: #56616f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e7eaef; --soft: #9aa5b5;
  --rule: #2f3744; --c0: #6fb1f5; --c1: #f08a72; --c2: #5fcfa4; --c3: #e5b85a; --c4: #b99ae0;
  --c5: #a9b4c2; } }
body { margin: 0 auto; max-width: 46rem; padding: 2rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.3rem; }
p { margin: 0.3rem 0; } .soft, figcaption { color: var(--soft); font-size: 0.85rem; }
figure { margin: 0.6rem 0; } svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); fill: none; }
.line { fill: none; stroke-width: 2; } .faint { stroke: var(--soft); fill: var(--soft);
  opacity: 0.45; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; width: 100%; }
th, td { padding: 0.3rem 0.6rem 0.3rem 0; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; } .plain td, .plain th { text-align: left; }
.legend span { margin-right: 1.2rem; font-size: 0.85rem; }
.key { display: inline-block;
  width: 0.8em; height: 0.8em; margin-right: 0.4em; border-radius: 50%; }
""" + "".join(
    f".line.c{n} {{ stroke: var(--c{n}); }} .dot.c{n} {{ fill: var(--c{n}); }} "
    f".key.c{n} {{ background: var(--c{n}); }}\n"
    for n in range(6)
)  # fmt: skip


def page(sources: Sources, drawn: Sequence[Figure], title: str) -> str:
    """Return the whole report as one HTML document."""
    body = [f"<h1>{escape(title)}</h1>", _summary(sources), _steps(sources)]
    for figure in drawn:
        made = "; ".join(escape(str(origin)) for origin in figure.origins)
        body.append(
            f"<section><h2>{escape(figure.title)}</h2><p>{escape(figure.text)}</p>"
            f"<figure>{figure.body}<figcaption>Made by {made}.</figcaption></figure></section>"
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _summary(sources: Sources) -> str:
    """Return the table of all models, a row each."""
    speeds = {short(row.model): row for row in fastest_setting(sources.benched)}
    scored = {short(model.model): model for model in sources.evaluated}
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
    note = ""
    if speeds:
        row = next(iter(speeds.values()))
        note = (
            f'<p class="soft">Speed and cache after {row.prompt_len:,} tokens at batch '
            f"{row.batch_size}; recovery and speed are against the baseline.</p>"
        )
    return _table(columns, rows) + note


def _steps(sources: Sources) -> str:
    parts = []
    for model in sources.trained:
        rows = [
            [str(number), f"hybridize {command}", source, when]
            for number, (command, source, when) in enumerate(model.steps, 1)
        ]
        parts.append(f"<h2>How {escape(model.model)} was made</h2>")
        parts.append(_table(["step", "made by", "from", "when"], rows, "plain"))
    return "".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'
