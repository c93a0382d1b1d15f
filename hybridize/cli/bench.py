"""`hybridize bench`."""

from pathlib import Path
from typing import Any

import click

from hybridize.cli import options
from hybridize.console import console

_MEASURING = (
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
# arXiv 2504.03624, figure 1
_PAPER = {"prompt_len": [65536], "gen_len": 1024, "batch_size": ["max"]}
_QUICK = {"prompt_len": [512, 2048], "gen_len": 32, "batch_size": [1]}


def _numbers(
    _context: click.Context, option: click.Parameter, text: str | None
) -> list[int] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise click.BadParameter(f"{text!r} is not a list of whole numbers like 512,2048")
    return [int(word) for word in words]


def _numbers_or_max(
    context: click.Context, option: click.Parameter, text: str | None
) -> list[Any] | None:
    return ["max"] if text == "max" else _numbers(context, option, text)


def _names(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@click.command("bench", short_help="Measure speed and memory of checkpoints.")
@options.models_argument
@click.option("--prompt-len", metavar="N,…", callback=_numbers,
              help="Tokens of a prompt.  [default: 512,2048; 65536 with --predict]")  # fmt: skip
@click.option("--gen-len", type=click.IntRange(min=2), metavar="N",
              help="New tokens per sequence.  [default: 32; 1024 with --predict]")  # fmt: skip
@click.option("--batch-size", metavar="N,…|max", callback=_numbers_or_max,
              help="Sequences at once; max is as many as fit into the GPU.  [default: 1; max with "
              "--preset and --predict]")  # fmt: skip
@click.option("--preset", type=click.Choice(["paper"]),
              help="The setting of Nemotron-H's figure: 65,536 tokens in, 1,024 out, and as many "
              "sequences as fit.")  # fmt: skip
@click.option("--baseline", metavar="MODEL", help="Run this model, too, and show ratios to it.")
@click.option(
    "--backend",
    default="hybridize",
    show_default=True,
    metavar="NAME,…",
    callback=_names,
    help="What runs the models: hybridize, transformers, or both in turn.",
)
@click.option("--decoding", type=click.Choice(["auto", "eager", "graph"]), default="auto",
              show_default=True,
              help="Launch every operation of a step in its turn, or record a step as a CUDA graph "
              "and replay it; auto does that where it can.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True,
              help="Turns that count, after one that does not.")  # fmt: skip
@click.option(
    "--predict",
    metavar="GPU",
    help="Predict instead of measuring, from config.json alone, the bound on this GPU: a100, "
    "h100, h200, b200, rtx4090, rtx5090. MODEL may be a published shape: llama-3.1-8b, "
    "llama-3.1-70b, nemotron-h-8b, nemotron-h-47b, nemotron-h-56b.",
)
@click.option("--gpus", type=click.IntRange(min=1), metavar="N",
              help="With --predict: how many GPUs share a model.  [default: 1]")  # fmt: skip
@options.output_option("Write the result as JSON.", file=True, required=False)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it as a PNG.")
@options.force_option
@options.device_option
@options.dtype_option("To compute in; auto is float32 on a CPU, else the checkpoint's.")
@options.cache_options
@options.seed_option
@options.common_options
@click.pass_context
def bench(
    context: click.Context,
    models: tuple[str, ...],
    preset: str | None,
    predict: str | None,
    gpus: int | None,
    output: Path | None,
    force: bool,
    **arguments: Any,
) -> None:
    """Measure speed and memory of checkpoints, in turns, so that ratios hold on a busy machine.

    \b
    hybridize bench HYBRID --baseline ORIGINAL                 how much faster it is
    hybridize bench HYBRID --backend transformers,hybridize    what our runtime brings
    hybridize bench nemotron-h-56b --baseline llama-3.1-70b --predict h100 --gpus 8
    """
    sizes = {name: arguments.pop(name) for name in _QUICK}
    if preset is not None or predict is not None:
        sizes |= {name: value for name, value in _PAPER.items() if sizes[name] is None}
    if predict is not None:
        _predict(context, models, predict, gpus, sizes, arguments["baseline"], output, force)
        return
    if gpus is not None:
        raise click.UsageError("--gpus goes with --predict")
    from hybridize.evals.bench.bench import bench as run
    from hybridize.evals.bench.table import print_bench

    sizes |= {name: value for name, value in _QUICK.items() if sizes[name] is None}
    result = run(models, output=output, force=force, **sizes, **arguments)
    if console.json_mode:
        console.json(result.to_dict())
    else:
        print_bench(result)


def _predict(
    context: click.Context,
    models: tuple[str, ...],
    gpu: str,
    gpus: int | None,
    sizes: dict[str, Any],
    baseline: str | None,
    output: Path | None,
    force: bool,
) -> None:
    import json

    from hybridize.evals.bench.predict import predict
    from hybridize.evals.bench.table import print_prediction
    from hybridize.output_files import check_output_file, write_atomically

    for name in _MEASURING:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no meaning with --predict, which runs nothing"
            )
    for name in ("prompt_len", "batch_size"):
        if sizes[name] is not None and len(sizes[name]) > 1:
            raise click.UsageError(f"--{name.replace('_', '-')} takes one number with --predict")
    if output is not None:
        check_output_file(output, force=force)
    result = predict(
        models,
        gpu=gpu,
        gpus=gpus or 1,
        prompt_len=sizes["prompt_len"][0],
        gen_len=sizes["gen_len"],
        batch_size=None if sizes["batch_size"] == ["max"] else sizes["batch_size"][0],
        baseline=baseline,
    )
    if output is not None:
        write_atomically(output, json.dumps(result.to_dict(), indent=2) + "\n")
    if console.json_mode:
        console.json(result.to_dict())
    else:
        print_prediction(result)
