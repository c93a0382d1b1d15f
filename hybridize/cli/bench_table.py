"""Print the table of a benchmark or of a prediction."""

from hybridize.console import console
from hybridize.evals.bench.predict import PredictionResult
from hybridize.evals.bench.results import BenchResult, BenchRow, Spread
from hybridize.units import size_in_words


def print_bench(result: BenchResult) -> None:
    """Print the rows as a table, with the machine in its caption."""
    machine = result.machine
    threads = f"{machine['threads']} of {machine['cores']} threads"
    device = machine.get("gpu") or f"{machine['processor']}, {threads}"
    backends = len({row.backend for row in result.rows}) > 1
    decoding = {
        "eager": "every operation launched separately",
        "graph": "decoding steps replayed from a CUDA graph",
    }
    modes = " or ".join(decoding[mode] for mode in sorted({row.decoding for row in result.rows}))
    rounds = result.options["repeats"]
    spread = f"medians of {rounds} rounds, ± half the interquartile range"
    console.table(
        [
            "model", "batch", "prompt", "prefill tok/s", "first token", "decode tok/s",
            "per sequence", "× prefill", "× decode", "peak memory", "KV", "states",
        ],
        [_cells(row, backends, rounds) for row in result.rows],
        caption=f"{device}; torch {machine['torch']}; {modes}. "
        f"{result.options['gen_len']} new tokens; {spread if rounds > 1 else 'one round'}"
        + (f"; × is the speed relative to {result.baseline}." if result.baseline else "."),
    )  # fmt: skip


def _cells(row: BenchRow, backends: bool, rounds: int) -> tuple[object, ...]:
    ratios = row.ratios
    return (
        f"{row.model} ({row.backend})" if backends else row.model,
        row.point.batch_size,
        f"{row.point.prompt_len:,}",
        _with_spread(row.prefill, rounds),
        _first_token(row.first_token.median),
        _with_spread(row.decode, rounds),
        _rate(row.decode_each.median),
        "-" if ratios is None else f"{ratios.prefill.median:.2f}",
        "-" if ratios is None else f"{ratios.decode.median:.2f}",
        "-" if row.peak_bytes is None else size_in_words(row.peak_bytes),
        size_in_words(row.kv_bytes),
        size_in_words(row.state_bytes),
    )


def _with_spread(figure: Spread, rounds: int) -> str:
    spread = f" ±{figure.deviation:.0%}" if rounds > 1 else ""  # one round says nothing about it
    return _rate(figure.median) + spread


def _rate(value: float) -> str:
    """Return a number of tokens per second with at least three digits."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _first_token(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def print_prediction(result: PredictionResult) -> None:
    """Print predictions as a table, with the assumptions in its caption."""
    point = result.rows[0].point
    console.table(
        [
            "model", "parameters", "batch", "prefill of one prompt", "decoding step", "weights",
            "KV", "states", "new tok/s per GPU", "× baseline",
        ],
        [
            (
                row.model,
                f"{row.parameters / 1e9:.1f}B",
                row.point.batch_size,
                f"{row.prefill_seconds * 1000:,.0f} ms",
                f"{row.step_seconds * 1000:,.1f} ms",
                size_in_words(row.weight_bytes),
                size_in_words(row.kv_bytes),
                size_in_words(row.state_bytes),
                f"{row.throughput:,.1f}",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
            )
            for row in result.rows
        ],
        title=f"{result.gpus} × {result.gpu.name}, {point.prompt_len:,} prompt tokens, "
        f"{point.gen_len:,} new tokens: bounds, not measurements",
        caption="Assumptions: " + "; ".join(result.assumptions) + ".",
    )  # fmt: skip
