"""Predict a model's speed on a GPU with the roofline model, from its configuration alone.

Every phase takes as long as its matrix operations at the GPU's peak rate or its memory traffic at
the peak bandwidth, whichever is longer (Williams et al. 2009, "Roofline"). Real software is slower,
so a prediction is a bound. A ratio of two models is realistic if both fall short of their bounds
by the same factor.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from hybridize.errors import InputError
from hybridize.evals.bench.config import PredictConfig
from hybridize.evals.bench.flops import CHUNK, decode_flops, prefill_flops
from hybridize.evals.bench.gpus import GPU, GPUS
from hybridize.evals.bench.results import AS_MANY_AS_FIT, Point
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes
from hybridize.options import takes_options

BYTES = 2  # bfloat16
MEMORY_SHARE = 0.9  # of the GPU's memory; activations and the runtime need the rest

ASSUMPTIONS = (
    f"weights, keys and values in bfloat16, SSM states in float32, in {MEMORY_SHARE:.0%} of the "
    "memory",
    "each phase runs at the peak rate or at the peak bandwidth of the data sheet, whichever takes "
    "longer",
    "tensor parallelism over all GPUs without communication cost",
    "prompts are prefilled one after another, then all sequences decode together",
    f"attention costs half of the squared length; the scan works in chunks of {CHUNK} tokens",
)


@dataclass(frozen=True)
class Prediction:
    """The bound for one model at one point.

    Attributes:
        model: the user's name of the model.
        parameters: number of parameters.
        point: the sizes; the batch size is the largest that fits if ``max`` was requested.
        largest_batch: the largest batch that fits into the memory.
        prefill_seconds: for one prompt.
        step_seconds: for one decoding step of the whole batch.
        weight_bytes: size of the weights.
        kv_bytes, state_bytes: size of the whole batch's cache at the end.
        throughput: new tokens per second and GPU, prefill included.
        ratio: throughput relative to the baseline's; None for the baseline and without one.
    """

    model: str
    parameters: int
    point: Point
    largest_batch: int
    prefill_seconds: float
    step_seconds: float
    weight_bytes: int
    kv_bytes: int
    state_bytes: int
    throughput: float
    ratio: float | None = None


@dataclass(frozen=True)
class PredictionResult:
    """All predictions; the baseline first."""

    rows: tuple[Prediction, ...]
    baseline: str | None
    gpu: GPU
    gpus: int
    assumptions: tuple[str, ...] = ASSUMPTIONS

    def to_dict(self) -> dict[str, Any]:
        """Return the predictions for JSON."""
        from importlib.metadata import version

        ours = {"version": version("hybridize"), "command": "bench --predict"}
        return {"hybridize": ours, **asdict(self)}


@takes_options(PredictConfig)
def predict(
    models: str | Path | Sequence[str | Path], *, config: PredictConfig
) -> PredictionResult:
    """Predict the speed of models with the roofline model. Their weights are not needed.

    Args:
        models: names of published models, config.json files, checkpoint directories or hub ids.
        config: the options.

    Raises:
        InputError: an option is wrong, or a model does not fit into the memory.
    """
    from hybridize.checkpoints.published_models import find_shape

    given = [models] if isinstance(models, str | Path) else list(models)
    every = given if config.baseline is None else [config.baseline, *given]
    rows: list[Prediction] = []
    for name in dict.fromkeys(map(str, every)):
        row = _predict(name, find_shape(name)[1], config)
        if config.baseline is not None and rows:
            row = replace(row, ratio=row.throughput / rows[0].throughput)
        rows.append(row)
    return PredictionResult(tuple(rows), config.baseline, GPUS[config.gpu], config.gpus)


def _predict(name: str, model: ModelSpec, config: PredictConfig) -> Prediction:
    gpu, gpus = GPUS[config.gpu], config.gpus
    parameters = sum(prod(shape) for shape in parameter_shapes(model).values())
    weights = parameters * BYTES
    context = config.prompt_len + config.gen_len
    cache = cache_cost(model, context, BYTES)
    room = MEMORY_SHARE * gpu.memory * gpus - weights
    largest = int(room // (cache.kv + cache.state)) if room > 0 else 0
    requested = AS_MANY_AS_FIT if config.batch_size == "max" else int(config.batch_size)
    batch = requested or largest
    if batch > largest or largest == 0:
        raise InputError(
            f"{name}: {max(1, batch)} sequences of {context:,} tokens do not fit into "
            f"{gpus} × {gpu.name}, only {largest}; change `gpus` or `batch_size`"
        )
    rate, bandwidth = gpu.flops * gpus, gpu.bandwidth * gpus
    prefill = max(prefill_flops(model, config.prompt_len) / rate, weights / bandwidth)
    middle = config.prompt_len + config.gen_len // 2  # the mean context of a decoding step
    mean_cache = cache_cost(model, middle, BYTES)
    traffic = weights + batch * (
        mean_cache.kv + 2 * mean_cache.state
    )  # states are read and written
    step = max(batch * decode_flops(model, middle) / rate, traffic / bandwidth)
    seconds = batch * prefill + (config.gen_len - 1) * step
    return Prediction(
        model=name,
        parameters=parameters,
        point=Point(config.prompt_len, config.gen_len, batch),
        largest_batch=largest,
        prefill_seconds=prefill,
        step_seconds=step,
        weight_bytes=weights,
        kv_bytes=batch * cache.kv,
        state_bytes=batch * cache.state,
        throughput=batch * config.gen_len / seconds / gpus,
    )
