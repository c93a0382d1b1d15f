"""`hybridize bench`."""

import json
from pathlib import Path
from typing import Any

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import models_argument
from hybridize.console import console
from hybridize.evals.bench.config import BenchConfig, PredictConfig
from hybridize.evals.bench.gpus import GPUS

_SIZES = ("prompt_len", "gen_len", "batch_size")
_UNUSED_BY_PREDICT = (
    "backend",
    "decoding",
    "repeats",
    "plot",
    "device",
    "dtype",
    "seed",
    "kv_cache_dtype",
    "ssm_cache_dtype",
)


@click.command("bench", short_help="Measure speed and memory of checkpoints.")
@models_argument
@click.option(
    "--predict",
    "gpu",
    metavar="GPU",
    help="Predict a bound for this GPU from config.json alone, without running the model: "
    f"{', '.join(GPUS)}. MODEL may be a published model: llama-3.1-8b, llama-3.1-70b, "
    "nemotron-h-8b, nemotron-h-47b, nemotron-h-56b. Default sizes: those of --preset paper.",
)
@click.option(
    "--gpus",
    metavar="N",
    help="Number of GPUs that share a model, for --predict.  [default: 1]",
)
@config_options(BenchConfig)
@click.pass_context
def bench(
    context: click.Context,
    models: tuple[str, ...],
    gpu: str | None,
    gpus: str | None,
    config: BenchConfig,
) -> None:
    """Measure speed and memory of checkpoints.

    Models run alternately, so that other load on the machine affects all of them equally.

    \b
    hybridize bench HYBRID --baseline ORIGINAL                 speed relative to the original
    hybridize bench HYBRID --backend transformers,hybridize    one checkpoint in two runtimes
    hybridize bench nemotron-h-56b --baseline llama-3.1-70b --predict h100 --gpus 8
    """
    if gpu is not None:
        _predict(context, models, gpu, gpus, config)
        return
    if gpus is not None:
        raise click.UsageError("--gpus works only with --predict")
    from hybridize.cli.bench_table import print_bench
    from hybridize.evals.bench.bench import bench as run

    result = run(models, config=config)
    if console.json_mode:
        console.json(result.to_dict())
    else:
        print_bench(result)


def _predict(
    context: click.Context,
    models: tuple[str, ...],
    gpu: str,
    gpus: str | None,
    config: BenchConfig,
) -> None:
    from hybridize.cli.bench_table import print_prediction
    from hybridize.evals.bench.predict import predict
    from hybridize.output_files import check_output_file, write_atomically

    for name in _UNUSED_BY_PREDICT:
        if _is_given(context, name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no meaning with --predict, which runs no model"
            )
    sizes = {
        name: _single(name, getattr(config, name)) for name in _SIZES if _is_given(context, name)
    }
    output = None if config.output is None else Path(config.output)
    if output is not None:
        check_output_file(output, force=config.force)
    options = PredictConfig(
        gpu=gpu,
        gpus=1 if gpus is None else gpus,  # type: ignore[arg-type]  # the config converts text
        baseline=config.baseline,
        **sizes,
    )
    result = predict(models, config=options)
    if output is not None:
        write_atomically(output, json.dumps(result.to_dict(), indent=2) + "\n")
    if console.json_mode:
        console.json(result.to_dict())
    else:
        print_prediction(result)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _single(name: str, value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    if len(value) > 1:
        raise click.UsageError(f"--{name.replace('_', '-')} takes one value with --predict")
    return value[0]
