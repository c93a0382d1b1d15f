"""Plot a benchmark: speed and memory over prompt length, one line per model."""

from pathlib import PurePath

from hybridize.evals.bench.results import BenchResult, BenchRow
from hybridize.plots import new_figure, png_bytes

_STYLES = ("-", "--", ":", "-.")
_COLORS = ("#4c6a92", "#d1495b", "#3a9d7a", "#edae49", "#8e6c8a", "#5b5b5b")


def draw_bench(result: BenchResult) -> bytes:
    """Draw prefill and decode speed and cache size over prompt length, as a PNG.

    Colors distinguish models and backends, line styles batch sizes. Bands reach from the first to
    the third quartile.

    Raises:
        HybridizeError: matplotlib is not installed.
    """
    lines: dict[str, list[BenchRow]] = {}
    for row in result.rows:
        lines.setdefault(_label(row, result), []).append(row)
    figure = new_figure("bench", figsize=(13, 4), layout="constrained")
    prefill, decode, memory = figure.subplots(1, 3)
    runs = list(dict.fromkeys((row.model, row.backend) for row in result.rows))
    batches = list(dict.fromkeys(row.point.batch_size for row in result.rows))
    for label, rows in lines.items():
        color = _COLORS[runs.index((rows[0].model, rows[0].backend)) % len(_COLORS)]
        style = "o" + _STYLES[batches.index(rows[0].point.batch_size) % len(_STYLES)]
        lengths = [row.point.prompt_len for row in rows]
        for axes, name in ((prefill, "prefill"), (decode, "decode")):
            spreads = [getattr(row, name) for row in rows]
            axes.plot(lengths, [s.median for s in spreads], style, color=color, label=label, ms=4)
            low, high = [s.low for s in spreads], [s.high for s in spreads]
            axes.fill_between(lengths, low, high, color=color, alpha=0.2, linewidth=0)
        cache = [(row.kv_bytes + row.state_bytes) / 2**20 for row in rows]
        memory.plot(lengths, cache, style, color=color, label=label, ms=4)
    prefill.set_title("prefill, prompt tokens/s")
    decode.set_title("decode, new tokens/s")
    memory.set_title("KV cache and states, MiB")
    for axes in (prefill, decode, memory):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("prompt length, tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    prefill.legend(fontsize="small")
    return png_bytes(figure, dpi=130)


def _label(row: BenchRow, result: BenchResult) -> str:
    parts = [PurePath(row.model).name]
    if len({other.backend for other in result.rows}) > 1:
        parts.append(f"({row.backend})")
    if len({other.point.batch_size for other in result.rows}) > 1:
        parts.append(f"batch {row.point.batch_size}")
    return " ".join(parts)
