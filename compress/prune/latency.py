"""A budget of time: the duration of a decoding step, predicted from timings on this machine.

There are too many sizes to time each of them. A few sizes of every kind of block are timed, in
stacks as deep as in the model, so that weights are read from memory and not from a CPU cache. The
duration of any other block is interpolated: a fixed time, plus a time per parameter, plus a time
per byte of cache. Reading parameters and cache takes most of a decoding step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import median

import torch
from typing_extensions import override

from hybridize.compress.prune.budget import Budget, block_parameters
from hybridize.compress.prune.budget_text import parse_latency
from hybridize.compress.prune.search import axes_of, block_kinds, widths_to_try
from hybridize.console import console
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.costs import block_cache_cost
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.model_spec import ModelSpec

_DEFAULT_CONTEXT = 4096
_ROUNDS = 9
_STACK_BYTES = 64 << 20  # larger than the caches of most CPUs
_TINY_BLOCK = MLPSizes(1)

Features = tuple[float, ...]
"""The inputs of the linear model of a duration: 1, number of parameters, bytes of cache."""


@dataclass(frozen=True)
class Latency(Budget):
    """Seconds per decoding step.

    Attributes:
        limit: seconds.
        context: tokens in the cache of each sequence.
        batch: number of sequences.
        rates: for each kind of block, and for everything outside the blocks under ``rest``: seconds
            per step, per parameter, and per byte of cache.
    """

    limit: float
    context: int
    batch: int
    rates: dict[str, Features]

    @override
    def block_cost(self, sizes: BlockSizes, hidden_size: int) -> float:
        features = _features(sizes, hidden_size, self.context, self.batch)
        return _dot(self.rates[type(sizes).__name__], features)

    @override
    def rest_cost(self, config: ModelSpec, hidden_size: int) -> float:
        return _dot(self.rates["rest"], _rest_features(config, hidden_size))

    @override
    def describe(self, cost: float) -> str:
        sequences = f" × {self.batch}" if self.batch > 1 else ""
        return f"{1000 * cost:.3g} ms per step at {self.context:,} tokens{sequences}"


def latency_budget(
    text: str,
    config: ModelSpec,
    axes: Sequence[str],
    multiple_of: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Latency:
    """Time blocks, and return the budget that `latency` describes.

    Args:
        text: see `parse_latency`. Without a context, it is 4,096 tokens, or the model's maximum if
            that is less.
        config: the model; its weights are not needed.
        axes, multiple_of: see `search`; they decide which sizes are timed.
        device, dtype: the device and the dtype of the timed steps.

    Raises:
        ValueError: the text has another form.
    """
    share, context, batch = parse_latency(text)
    if context is None:
        context = min(_DEFAULT_CONTEXT, config.max_position_embeddings)
    hidden_sizes = _hidden_sizes_to_time(config, axes, multiple_of)
    stacks: dict[str, list[tuple[Features, _Stack]]] = {}
    for kind in block_kinds():
        of_kind = [sizes for sizes in config.blocks if isinstance(sizes, kind)]
        if not of_kind:
            continue
        stacks[kind.__name__] = [
            (
                _features(sizes, hidden_size, context, batch),
                _Stack(config, sizes, hidden_size, len(of_kind), context, batch, device, dtype),
            )
            for sizes in _sizes_to_time(kind, of_kind, config, axes, multiple_of)
            for hidden_size in hidden_sizes
        ]
    stacks["rest"] = [
        (
            _rest_features(config, hidden_size),
            _Stack(config, _TINY_BLOCK, hidden_size, 1, context, batch, device, dtype),
        )
        for hidden_size in hidden_sizes
    ]
    seconds = _time_stacks(stacks)
    rates = {
        name: fit([features for features, _ in timed], seconds[name])
        for name, timed in stacks.items()
    }
    whole = Latency(float("inf"), context, batch, rates).cost(config)
    return Latency(share * whole, context, batch, rates)


@torch.inference_mode()
def step_seconds(
    models: Sequence[HybridForCausalLM], context: int, batch: int, rounds: int = _ROUNDS
) -> list[float]:
    """Return the median duration of a decoding step of each model, measured in turn."""
    caches = [_filled_cache(model, context, batch) for model in models]
    samples: list[list[float]] = [[] for _ in models]
    for number in range(rounds + 1):
        for model, cache, seconds in zip(models, caches, samples, strict=True):
            ids = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
            duration = _seconds_of(model.device, partial(model, ids, cache=cache))
            if number:  # the first round warms up
                seconds.append(duration)
    return [median(seconds) for seconds in samples]


def fit(features: Sequence[Features], seconds: Sequence[float]) -> Features:
    """Return non-negative rates by least squares of the relative errors.

    Args:
        features: of each sample.
        seconds: the duration of each sample.
    """
    durations = torch.tensor(seconds, dtype=torch.float64)
    table = torch.tensor(features, dtype=torch.float64)
    scale = table.abs().amax(0).clamp(min=1e-30)
    table = table / scale / durations[:, None]
    best, least = torch.zeros(table.shape[1], dtype=torch.float64), float("inf")
    for count in range(1, table.shape[1] + 1):
        for columns in combinations(range(table.shape[1]), count):
            chosen = list(columns)
            found = torch.linalg.pinv(table[:, chosen]).sum(1)  # the right-hand side is all ones
            error = float((table[:, chosen] @ found - 1).square().sum())
            if bool((found >= 0).all()) and error < least - 1e-12:
                best, least = torch.zeros_like(best), error
                best[chosen] = found
    return tuple((best / scale).tolist())


def _hidden_sizes_to_time(
    config: ModelSpec, axes: Sequence[str], multiple_of: int | None
) -> list[int]:
    """Return the model's hidden size, and the smallest that the search tries."""
    smallest = config
    for axis in axes_of(None, axes, config):
        smallest = axis.resize(smallest, min(widths_to_try(axis, config, multiple_of)))
    return list(dict.fromkeys((config.hidden_size, smallest.hidden_size)))


def _sizes_to_time(
    kind: type[BlockSizes],
    of_kind: list[BlockSizes],
    config: ModelSpec,
    axes: Sequence[str],
    multiple_of: int | None,
) -> list[BlockSizes]:
    """Return the model's own sizes, those with one axis at its minimum, and with all of them."""
    found = list(dict.fromkeys(of_kind))
    for sizes in list(found):
        smallest = sizes
        for axis in axes_of(kind, axes, config):
            count = min(widths_to_try(axis, config, multiple_of))
            found.append(axis.resize(sizes, count))
            smallest = axis.resize(smallest, count)
        found.append(smallest)
    return list(dict.fromkeys(found))


class _Stack:
    """Equal blocks in sequence, with random weights and a full cache.

    A stack of `_TINY_BLOCK` times everything outside the blocks instead.
    """

    def __init__(
        self,
        config: ModelSpec,
        sizes: BlockSizes,
        hidden_size: int,
        depth: int,
        context: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        block_bytes = block_parameters(sizes, hidden_size) * dtype.itemsize
        self.depth = max(1, min(depth, _STACK_BYTES // block_bytes))
        self._whole_model = sizes is _TINY_BLOCK
        stack = replace(
            config,
            blocks=(sizes,) * self.depth,
            hidden_size=hidden_size,
            pad_token_id=None,
            vocab_size=config.vocab_size if self._whole_model else 1,
        )
        with torch.device(device):
            self.model = HybridForCausalLM(HybridConfig.from_spec(stack)).eval()
        self.model.to(dtype=dtype)
        self._context, self._batch = context, batch

    def prepare(self) -> Callable[[], float]:
        """Return a function that runs one step and returns its duration per block."""
        model, device = self.model, self.model.device
        cache = _filled_cache(model, self._context, self._batch)
        ids = torch.zeros(self._batch, 1, dtype=torch.long, device=device)
        if self._whole_model:
            return partial(_seconds_of, device, partial(model, ids, cache=cache))
        x = torch.randn(self._batch, 1, model.config.hidden_size, device=device, dtype=model.dtype)

        def step() -> float:
            context = model.model.block_context(x, cache=cache)

            def run() -> None:
                y = x
                for block in model.model.blocks:
                    y = block(y, context)

            return _seconds_of(device, run) / self.depth

        return step


@torch.inference_mode()
def _time_stacks(stacks: dict[str, list[tuple[Features, _Stack]]]) -> dict[str, list[float]]:
    """Return the median duration of each stack.

    Stacks are timed in turn, so that other load on the machine affects all of them equally.
    """
    steps = {name: [stack.prepare() for _, stack in of_kind] for name, of_kind in stacks.items()}
    samples: dict[str, list[list[float]]] = {name: [[] for _ in s] for name, s in steps.items()}
    with console.progress("timing blocks", _ROUNDS + 1, "rounds") as progress:
        for number in range(_ROUNDS + 1):
            for name, of_kind in steps.items():
                for step, seconds in zip(of_kind, samples[name], strict=True):
                    duration = step()
                    if number:  # the first round warms up
                        seconds.append(duration)
            progress.advance()
    return {name: [median(seconds) for seconds in of_kind] for name, of_kind in samples.items()}


def _filled_cache(model: HybridForCausalLM, context: int, batch: int) -> HybridCache:
    """Return a cache with the sizes that it has after a prompt of ``context`` tokens."""
    cache = HybridCache(model.config)
    for layer_idx, sizes in enumerate(model.config.blocks):
        if isinstance(sizes, AttentionSizes):
            tokens = min(context, (sizes.sliding_window or context + 1) - 1)
            shape = (batch, sizes.num_kv_heads, tokens, sizes.head_dim)
            zeros = torch.zeros(shape, device=model.device, dtype=model.dtype)
            cache.update(zeros, zeros.clone(), layer_idx)
    with torch.inference_mode():  # one step creates the states
        model(torch.zeros(batch, 1, dtype=torch.long, device=model.device), cache=cache)
    return cache


def _seconds_of(device: torch.device, run: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _features(sizes: BlockSizes, hidden_size: int, context: int, batch: int) -> Features:
    cache = block_cache_cost(sizes, context, 1)
    parameters = block_parameters(sizes, hidden_size)
    return (1.0, float(parameters), float(batch * (cache.kv + cache.state)))


def _rest_features(config: ModelSpec, hidden_size: int) -> Features:
    return (1.0, float(config.vocab_size * hidden_size), 0.0)


def _dot(rates: Features, features: Features) -> float:
    return sum(rate * feature for rate, feature in zip(rates, features, strict=True))
