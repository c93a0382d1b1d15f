"""The roofline of a model on a GPU, from its configuration alone.

Every phase takes as long as its matrix operations at the GPU's peak rate or its bytes at the peak
bandwidth, whichever is longer (Williams et al. 2009, "Roofline"). No software reaches that, so
single figures are bounds; ratios of two models hold as far as both miss the bound alike.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from hybridize.errors import InputError
from hybridize.evals.bench.gpus import GPU, GPUS
from hybridize.evals.bench.results import Point
from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes

BYTES = 2  # bfloat16
MEMORY_SHARE = 0.9  # of the GPU: the rest is for activations and the runtime
CHUNK = 256  # tokens of a chunk of the state-space scan, as state-spaces/mamba has it

ASSUMPTIONS = (
    f"weights, keys and values in bfloat16, SSM states in float32, {MEMORY_SHARE:.0%} of the "
    "memory for them",
    "every operation at the peak rate of the data sheet or every byte at the peak bandwidth, "
    "whichever takes longer",
    "tensor parallelism over all GPUs without any cost of communication",
    "prompts are prefilled one after another, then all sequences decode together",
    f"attention costs half of the square of the length; the scan works in chunks of {CHUNK} tokens",
)


@dataclass(frozen=True)
class Prediction:
    """The bound for one model at one point.

    Attributes:
        model: as the user named it.
        parameters: how many.
        point: the sizes; the batch size is the largest that fits where none was given.
        largest_batch: the most sequences that fit into the memory.
        prefill_seconds: for one prompt.
        step_seconds: of one decoding step of the whole batch.
        weight_bytes: of the model.
        kv_bytes, state_bytes: of the whole batch at its end.
        throughput: new tokens per second and GPU, prefill included.
        ratio: of the throughput to the baseline's; None for the baseline and without one.
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
        """Return the figures as JSON can hold them."""
        from importlib.metadata import version

        ours = {"version": version("hybridize"), "command": "bench --predict"}
        return {"hybridize": ours, **asdict(self)}


def predict(
    models: str | Path | Sequence[str | Path],
    *,
    gpu: str,
    gpus: int = 1,
    prompt_len: int = 65536,
    gen_len: int = 1024,
    batch_size: int | None = None,
    baseline: str | Path | None = None,
) -> PredictionResult:
    """Work out the roofline of models that need not be at hand.

    Args:
        models: names of published shapes, config.json files, checkpoint directories or hub ids.
        gpu: one of `GPUS`.
        gpus: how many of them share the model.
        prompt_len, gen_len: tokens of a prompt and new tokens; as in Nemotron-H's figure.
        batch_size: sequences that decode together; the most that fit if None.
        baseline: what the others are compared to.

    Raises:
        InputError: an argument is wrong, or a model does not fit.
    """
    from hybridize.checkpoints.published_models import find_shape

    if gpu not in GPUS:
        raise InputError(f"--predict {gpu}: known are {', '.join(GPUS)}")
    for option, value, least in (
        ("--gpus", gpus, 1),
        ("--prompt-len", prompt_len, 1),
        ("--gen-len", gen_len, 2),
        ("--batch-size", 1 if batch_size is None else batch_size, 1),
    ):
        if value < least:
            raise InputError(f"{option} {value}: must be at least {least}")
    given = [models] if isinstance(models, str | Path) else list(models)
    names = list(dict.fromkeys(map(str, given if baseline is None else [baseline, *given])))
    rows: list[Prediction] = []
    for name in names:
        config = find_shape(name)[1]
        point = Point(prompt_len, gen_len, batch_size or 0)
        row = _predict(name, config, GPUS[gpu], gpus, point)
        if baseline is not None and rows:
            row = Prediction(**vars(row) | {"ratio": row.throughput / rows[0].throughput})
        rows.append(row)
    return PredictionResult(
        tuple(rows), None if baseline is None else str(baseline), GPUS[gpu], gpus
    )


def _predict(name: str, config: HybridConfig, gpu: GPU, gpus: int, wanted: Point) -> Prediction:
    parameters = sum(prod(shape) for shape in parameter_shapes(config).values())
    weights = parameters * BYTES
    context = wanted.prompt_len + wanted.gen_len
    cache = cache_cost(config, context, BYTES)
    room = MEMORY_SHARE * gpu.memory * gpus - weights
    largest = int(room // (cache.kv + cache.state)) if room > 0 else 0
    batch = wanted.batch_size or largest
    if batch > largest or largest == 0:
        raise InputError(
            f"{name}: {max(1, batch)} sequences of {context:,} tokens do not fit into "
            f"{gpus} × {gpu.name}; {largest} do (--gpus, --batch-size)"
        )
    point = Point(wanted.prompt_len, wanted.gen_len, batch)
    rate, bandwidth = gpu.flops * gpus, gpu.bandwidth * gpus
    prefill = max(prefill_flops(config, point.prompt_len) / rate, weights / bandwidth)
    middle = point.prompt_len + point.gen_len // 2
    held = cache_cost(config, middle, BYTES)
    traffic = weights + batch * (held.kv + 2 * held.state)  # states are read and written
    step = max(batch * decode_flops(config, middle) / rate, traffic / bandwidth)
    seconds = batch * prefill + (point.gen_len - 1) * step
    return Prediction(
        model=name,
        parameters=parameters,
        point=point,
        largest_batch=largest,
        prefill_seconds=prefill,
        step_seconds=step,
        weight_bytes=weights,
        kv_bytes=batch * cache.kv,
        state_bytes=batch * cache.state,
        throughput=batch * point.gen_len / seconds / gpus,
    )


def prefill_flops(config: HybridConfig, length: int) -> float:
    """Return the operations of one prompt: two per weight and token, attention and scan.

    The scan's per token, following Dao & Gu 2024 (arXiv 2405.21060, section 6): products of C and
    B and of those with x within half a chunk on average, and the state, written and read.
    """
    total = 2.0 * length * _matrix_weights(config) + 2 * config.hidden_size * config.vocab_size
    for block in config.blocks:
        if isinstance(block, AttentionSizes):
            window = min(length, block.sliding_window or length)
            pairs = length * window - window * (window - 1) / 2
            total += 4 * pairs * block.num_heads * block.head_dim
        elif isinstance(block, MambaSizes):
            within = CHUNK / 2 * 2 * (block.n_groups * block.d_state + block.d_inner)
            total += length * (within + 4 * block.d_inner * block.d_state)
    return total


def decode_flops(config: HybridConfig, context: int) -> float:
    """Return the operations of one token of one sequence after ``context`` tokens."""
    total = 2.0 * (_matrix_weights(config) + config.hidden_size * config.vocab_size)
    for block in config.blocks:
        if isinstance(block, AttentionSizes):
            seen = min(context, block.sliding_window or context)
            total += 4 * seen * block.num_heads * block.head_dim
        elif isinstance(block, MambaSizes):
            total += 6 * block.d_inner * block.d_state
    return total


def _matrix_weights(config: HybridConfig) -> int:
    """Count the weights of the blocks that every token is multiplied with."""
    hidden = config.hidden_size
    shapes = [shape for block in config.blocks for shape in block.shapes(hidden).values()]
    return sum(prod(shape) for shape in shapes if len(shape) == 2)
