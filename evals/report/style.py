"""The colors of a report in light and in dark mode, and the style sheet of the page."""

LIGHT = {
    "paper": "#ffffff", "ink": "#1d2430", "soft": "#5d6778", "rule": "#dfe3e9",
    "c0": "#2f6db3", "c1": "#c8553d", "c2": "#2e8b6b", "c3": "#a87a22", "c4": "#7d5ba6",
    "c5": "#56616f",
}  # fmt: skip
DARK = {
    "paper": "#14181f", "ink": "#e7eaef", "soft": "#9aa5b5", "rule": "#2f3744",
    "c0": "#6fb1f5", "c1": "#f08a72", "c2": "#5fcfa4", "c3": "#e5b85a", "c4": "#b99ae0",
    "c5": "#a9b4c2",
}  # fmt: skip


def _colors(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in palette.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_colors(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colors(DARK)} }} }}
body {{ margin: 0 auto; max-width: 46rem; padding: 2rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; }} h2 {{ font-size: 1.2rem; margin: 2.5rem 0 0.3rem; }}
p {{ margin: 0.3rem 0; }} .soft, figcaption {{ color: var(--soft); font-size: 0.85rem; }}
figure {{ margin: 0.6rem 0; }} svg {{ width: 100%; height: auto; }}
svg text {{ fill: var(--soft); font: 12px system-ui, sans-serif; }}
polyline {{ fill: none; }} .grid {{ stroke: var(--rule); }} .axis {{ stroke: var(--soft); }}
polyline.faint {{ stroke: var(--soft); opacity: 0.45; }}
circle.faint {{ fill: var(--soft); opacity: 0.45; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; width: 100%; }}
th, td {{ padding: 0.3rem 0.6rem 0.3rem 0; text-align: right;
  border-bottom: 1px solid var(--rule); }}
th:first-child, td:first-child {{ text-align: left; white-space: nowrap; }}
.plain td, .plain th {{ text-align: left; }}
.legend span {{ margin-right: 1.2rem; font-size: 0.85rem; }}
.key {{ display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em;
  border-radius: 50%; }}
""" + "".join(
    f"polyline.c{n} {{ stroke: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); }} "
    f".key.c{n} {{ background: var(--c{n}); }}\n"
    for n in range(6)
)
