"""Measure several models in turn over a grid of sizes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridize.console import console
from hybridize.evals.bench.config import BenchConfig
from hybridize.evals.bench.results import AS_MANY_AS_FIT, BenchResult, BenchRow, Point
from hybridize.evals.checkpoint_list import find_checkpoints
from hybridize.evals.commit import current_commit
from hybridize.extras import require_extra
from hybridize.interrupts import uninterrupted
from hybridize.options import takes_options
from hybridize.output_files import check_output_file, write_atomically

if TYPE_CHECKING:
    from hybridize.evals.bench.runner import Runner, Sample

WARM_UPS = 1


@takes_options(BenchConfig)
def bench(models: str | Path | Sequence[str | Path], *, config: BenchConfig) -> BenchResult:
    """Measure how fast checkpoints run and how much memory they take.

    All models are loaded together and run alternately within every round, so that other load on
    the machine affects all of them equally. Ratios are computed within each round. ``prompt_len``
    and ``batch_size`` span a grid; the first of the ``gen_len`` new tokens belongs to the prefill.
    Ratios are relative to the baseline with the first backend.

    Args:
        models: checkpoint directories or hub ids.
        config: the options.

    Returns:
        One row per model, backend and point of the grid.

    Raises:
        InputError: an option or a checkpoint is wrong; nothing was written.
        HybridizeError: a run failed.
    """
    for path in (config.output, config.plot):
        if path is not None:
            check_output_file(Path(path), force=config.force)
    if config.plot is not None:
        require_extra("bench", "matplotlib", "drawing a plot")
    runs = _list_runs(models, config)

    from hybridize.evals.bench.machine import describe_machine
    from hybridize.modeling.devices import choose_device

    device = choose_device(config.device)
    machine = describe_machine(device)
    result = BenchResult(
        rows=tuple(_measure_grid(_load_runners(runs, config), config)),
        baseline=config.baseline,
        machine=machine,
        commit=current_commit(),
        options=config.record(),
    )
    _write(result, config)
    return result


def grid(config: BenchConfig) -> tuple[Point, ...]:
    """Return all points of the grid, ordered by batch size and then by prompt length."""
    assert config.prompt_len is not None  # `BenchConfig.check` sets the three sizes
    assert config.gen_len is not None
    assert config.batch_size is not None
    sizes = [AS_MANY_AS_FIT if size == "max" else size for size in config.batch_size]
    return tuple(
        Point(length, config.gen_len, size) for size in sizes for length in config.prompt_len
    )


def _list_runs(
    models: str | Path | Sequence[str | Path], config: BenchConfig
) -> list[tuple[str, str, Path]]:
    """Return name, backend and directory of every run, each once, the baseline first."""
    return [
        (name, backend, directory)
        for name, directory in find_checkpoints(models, config.baseline).items()
        for backend in dict.fromkeys(config.backend)
    ]


def _load_runners(runs: list[tuple[str, str, Path]], config: BenchConfig) -> "list[Runner]":
    from hybridize.evals.backends import load_with_backend
    from hybridize.evals.bench.runner import Runner
    from hybridize.modeling.cache.format import CacheFormat
    from hybridize.modeling.devices import choose_device, choose_dtype

    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    cache_format = CacheFormat(config.kv_cache_dtype, config.ssm_cache_dtype)
    runners = []
    for name, backend, directory in runs:
        model = load_with_backend(
            directory, backend=backend, device=device, dtype=dtype, cache_format=cache_format
        )
        runners.append(Runner(name, backend, model, config.decoding))
    return runners


def _measure_grid(runners: "list[Runner]", config: BenchConfig) -> list[BenchRow]:
    """Run all models at all points, alternately; return the rows, point by point."""
    from hybridize.evals.bench.summary import compare_samples, summarize

    points = grid(config)
    rounds = WARM_UPS + config.repeats
    rows: list[BenchRow] = []
    with console.progress("benchmark", len(points) * rounds * len(runners), "runs") as progress:
        for requested in points:
            fitted = [runner.fit(requested) for runner in runners]
            samples: list[list[Sample]] = [[] for _ in runners]
            for number in range(rounds):
                for runner, point, measured in zip(runners, fitted, samples, strict=True):
                    sample = runner.run(point, config.seed)
                    if number >= WARM_UPS:
                        measured.append(sample)
                    progress.advance()
            for index, (runner, measured) in enumerate(zip(runners, samples, strict=True)):
                ratios = None
                if config.baseline is not None and index > 0:
                    batch_ratio = fitted[index].batch_size / fitted[0].batch_size
                    ratios = compare_samples(measured, samples[0], batch_ratio)
                rows.append(summarize(runner, fitted[index], measured, ratios))
    return rows


def _write(result: BenchResult, config: BenchConfig) -> None:
    files: dict[str, str | bytes] = {}
    if config.output is not None:
        files[config.output] = json.dumps(result.to_dict(), indent=2) + "\n"
    if config.plot is not None:
        from hybridize.evals.bench.speed_plot import draw_bench

        files[config.plot] = draw_bench(result)
    with uninterrupted(f"complete: {', '.join(files)}" if files else ""):
        for name, content in files.items():
            write_atomically(Path(name), content)
