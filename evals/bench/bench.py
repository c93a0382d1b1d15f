"""`hybridize bench`: several models in turn over a grid of sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from hybridize.checkpoints.hub import resolve
from hybridize.console import console
from hybridize.errors import InputError
from hybridize.evals.bench.results import (
    AS_MANY_AS_FIT,
    BenchResult,
    BenchRow,
    Point,
    Ratios,
    Spread,
)
from hybridize.evals.commit import current_commit
from hybridize.output_files import check_output_file

if TYPE_CHECKING:
    from hybridize.evals.backends import Backend
    from hybridize.evals.bench.runner import Runner, Sample

BACKENDS = ("hybridize", "transformers")
WARM_UPS = 1


def bench(
    models: str | Path | Sequence[str | Path],
    *,
    prompt_len: Sequence[int] = (512, 2048),
    gen_len: int = 32,
    batch_size: Sequence[int | Literal["max"]] = (1,),
    baseline: str | Path | None = None,
    backend: Sequence[str] = ("hybridize",),
    decoding: str = "auto",
    repeats: int = 5,
    output: str | Path | None = None,
    plot: str | Path | None = None,
    force: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    ssm_cache_dtype: str = "auto",
    seed: int = 0,
) -> BenchResult:
    """Measure how fast checkpoints run and what memory they take.

    All models are loaded at once and take turns within every repeat, so that whatever else the
    machine does meets all of them alike. Ratios are taken repeat by repeat.

    Args:
        models: checkpoint directories or hub ids.
        prompt_len: tokens of a prompt; each value is a point of the grid.
        gen_len: new tokens per sequence, the first of which belongs to the prefill; at least 2.
        batch_size: sequences at once; each value is a point of the grid. ``"max"`` is, for each
            model, as many as its GPU has room for beside all weights.
        baseline: a checkpoint to which the others are compared; runs first, with the first
            backend.
        backend: ``"hybridize"``, ``"transformers"`` (the class that transformers has for the
            model), or both: each model is run by each.
        decoding: ``"eager"`` launches every operation of a step in its turn, ``"graph"`` records a
            step and replays it (our runtime on a GPU), ``"auto"`` does that where it can.
        repeats: runs that count, after one that does not.
        output: a JSON file for the result.
        plot: a PNG file for the picture.
        force: replace existing files.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        dtype: ``"auto"`` (float32 on a CPU, else the checkpoint's), ``"float32"``,
            ``"bfloat16"`` or ``"float16"``.
        kv_cache_dtype, ssm_cache_dtype: what caches are stored in, see `CacheFormat`.
        seed: of the random prompts, which are the same for all models of one vocabulary.

    Raises:
        InputError: an argument or a checkpoint is wrong; nothing was written.
        HybridizeError: a run failed.
    """
    points = grid(prompt_len, gen_len, batch_size)
    for name in backend:
        if name not in BACKENDS:
            raise InputError(f"--backend {name}: choose among {', '.join(BACKENDS)}")
    if not backend:
        raise InputError(f"--backend: name at least one of {', '.join(BACKENDS)}")
    if repeats < 1:
        raise InputError(f"--repeats {repeats}: must be at least 1")
    for path in (output, plot):
        if path is not None:
            check_output_file(Path(path), force=force)
    if plot is not None:
        from hybridize.evals.bench.plot import require_matplotlib

        require_matplotlib()
    entries = _entries(models, baseline, backend)

    from hybridize.evals.backends import load_with_backend
    from hybridize.evals.bench.machine import describe_machine
    from hybridize.evals.bench.runner import Runner
    from hybridize.modeling.cache.compact import CacheFormat
    from hybridize.modeling.devices import choose_device, choose_dtype

    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    machine = describe_machine(place)
    stored = CacheFormat(kv_cache_dtype, ssm_cache_dtype)
    runners = []
    for name, kind, directory in entries:
        model = load_with_backend(
            directory, backend=kind, device=place, dtype=precision, cache_format=stored
        )
        runners.append(Runner(name, kind, model, decoding))
    runs = len(points) * (WARM_UPS + repeats) * len(runners)
    rows: list[BenchRow] = []
    with console.progress("benchmark", runs, "runs") as progress:
        for wanted in points:
            places = [runner.place(wanted) for runner in runners]
            samples: list[list[Sample]] = [[] for _ in runners]
            for turn in range(WARM_UPS + repeats):
                for runner, point, mine in zip(runners, places, samples, strict=True):
                    sample = runner.run(point, seed)
                    if turn >= WARM_UPS:
                        mine.append(sample)
                    progress.advance()
            for index, (runner, mine) in enumerate(zip(runners, samples, strict=True)):
                ratios = None
                if baseline is not None and index > 0:
                    more = places[index].batch_size / places[0].batch_size
                    ratios = _ratios(mine, samples[0], more)
                rows.append(_row(runner, places[index], mine, ratios))
    result = BenchResult(
        rows=tuple(rows),
        baseline=None if baseline is None else str(baseline),
        machine=machine,
        commit=current_commit(),
        options={
            "prompt_len": list(prompt_len),
            "gen_len": gen_len,
            "batch_size": list(batch_size),
            "backend": list(backend),
            "decoding": decoding,
            "repeats": repeats,
            "dtype": dtype,
            "kv_cache_dtype": kv_cache_dtype,
            "ssm_cache_dtype": ssm_cache_dtype,
            "seed": seed,
        },
    )
    _write(result, output, plot)
    return result


_MOST = 1 << 31  # tokens or sequences: beyond what any machine holds


def grid(
    prompt_len: Sequence[int], gen_len: int, batch_size: Sequence[int | Literal["max"]]
) -> tuple[Point, ...]:
    """Return all points of a grid, batch by batch.

    Raises:
        InputError: a size that makes no sense.
    """
    for option, values, least in (
        ("--prompt-len", prompt_len, 1),
        ("--gen-len", (gen_len,), 2),
        ("--batch-size", batch_size, 1),
    ):
        if not values:
            raise InputError(f"{option}: name at least one number")
        for value in values:
            if value != "max" and value < least:
                raise InputError(f"{option} {value}: must be at least {least}")
            if value != "max" and value > _MOST:
                raise InputError(f"{option} {value}: must be at most {_MOST:,}")
    sizes = [AS_MANY_AS_FIT if size == "max" else size for size in batch_size]
    return tuple(Point(length, gen_len, size) for size in sizes for length in prompt_len)


def _entries(
    models: str | Path | Sequence[str | Path],
    baseline: str | Path | None,
    backends: Sequence[str],
) -> list[tuple[str, "Backend", Path]]:
    """Return name, backend and directory of every run, the baseline first, each once."""
    given = [models] if isinstance(models, str | Path) else list(models)
    if not given:
        raise InputError("MODEL: name at least one checkpoint")
    named = given if baseline is None else [baseline, *given]
    directories = {str(model): resolve(model) for model in named}
    for directory in directories.values():
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory}: has no config.json; name a checkpoint's directory")
    return [
        (name, cast("Backend", backend), directory)
        for name, directory in directories.items()
        for backend in dict.fromkeys(backends)
    ]


def _ratios(samples: "list[Sample]", baseline: "list[Sample]", more: float) -> Ratios:
    """Compare tokens per second, turn by turn.

    Args:
        samples: of a model.
        baseline: of the one it is compared to.
        more: sequences of its batch, over those of the baseline's.
    """
    pairs = list(zip(samples, baseline, strict=True))
    return Ratios(
        prefill=Spread.of([more * b.first_token / s.first_token for s, b in pairs]),
        decode=Spread.of([more * b.decoding / s.decoding for s, b in pairs]),
        throughput=Spread.of(
            [more * (b.first_token + b.decoding) / (s.first_token + s.decoding) for s, b in pairs]
        ),
    )


def _row(
    runner: "Runner", point: Point, samples: "list[Sample]", ratios: Ratios | None
) -> BenchRow:
    prompt = point.batch_size * point.prompt_len
    others, each = point.batch_size * (point.gen_len - 1), point.gen_len - 1
    new = point.batch_size * point.gen_len
    working = [s.working_bytes for s in samples if s.working_bytes is not None]
    return BenchRow(
        model=runner.name,
        backend=runner.backend,
        decoding=runner.decoding,
        point=point,
        first_token=Spread.of([s.first_token for s in samples]),
        prefill=Spread.of([prompt / s.first_token for s in samples]),
        decode=Spread.of([others / s.decoding for s in samples]),
        decode_each=Spread.of([each / s.decoding for s in samples]),
        throughput=Spread.of([new / (s.first_token + s.decoding) for s in samples]),
        weight_bytes=runner.weight_bytes,
        peak_bytes=runner.weight_bytes + max(working) if working else None,
        kv_bytes=samples[-1].kv_bytes,
        state_bytes=samples[-1].state_bytes,
        ratios=ratios,
    )


def _write(result: BenchResult, output: str | Path | None, plot: str | Path | None) -> None:
    import json

    from hybridize.output_files import write_atomically

    if output is not None:
        write_atomically(Path(output), json.dumps(result.to_dict(), indent=2) + "\n")
    if plot is not None:
        from hybridize.evals.bench.plot import draw_bench

        write_atomically(Path(plot), draw_bench(result))
