"""A budget in time: how long a decoding step takes, from timings of single blocks on this machine.

There are far too many sizes to time each. A few of every kind are, in stacks as deep as the model
has them (so that weights come from memory, as they do in the model), and what lies between follows
from them: a block takes a fixed time, and so much for each parameter and each byte of cache it
reads. Decoding is bound by just that.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import median

import torch

from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import BlockAxis
from hybridize.compress.prune.budget import Budget, block_parameters, parse_latency
from hybridize.compress.prune.search import options
from hybridize.console import console
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.costs import block_cache_cost
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM

_KINDS: tuple[type[BlockSizes], ...] = (MLPSizes, AttentionSizes, MambaSizes)
_ROUNDS = 9
_STACK_BYTES = 64 << 20  # more than the caches of most processors
_SMALL = MLPSizes(1)

Features = tuple[float, ...]


@dataclass(frozen=True)
class Latency(Budget):
    """Seconds per decoding step.

    Attributes:
        limit: seconds.
        context, batch: tokens that each sequence has before it, and sequences at a time.
        rates: for each kind of block, and for embeddings, head and everything around the blocks
            under ``rest``: seconds per step, per parameter, and per byte of cache.
    """

    limit: float
    context: int
    batch: int
    rates: dict[str, Features]

    def of_block(self, sizes: BlockSizes, hidden: int) -> float:
        """See `Budget.of_block`."""
        return _dot(self.rates[type(sizes).__name__], _features(sizes, hidden, self))

    def of_rest(self, config: HybridConfig, hidden: int) -> float:
        """See `Budget.of_rest`."""
        return _dot(self.rates["rest"], (1.0, float(config.vocab_size * hidden), 0.0))

    def in_words(self, cost: float) -> str:
        """See `Budget.in_words`."""
        sequences = f" × {self.batch}" if self.batch > 1 else ""
        return f"{1000 * cost:.3g} ms per step at {self.context:,} tokens{sequences}"


def latency_budget(
    text: str,
    config: HybridConfig,
    axes: Sequence[str],
    multiple_of: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Latency:
    """Time blocks, and read ``--latency`` as a share of what the model takes.

    Args:
        text: see `parse_latency`.
        config: the model; its weights are not needed.
        axes, multiple_of: see `search`; the sizes they allow are those that are timed.
        device, dtype: where and in which dtype steps are taken.

    Raises:
        InputError: ``text`` is no such budget.
    """
    share, context, batch = parse_latency(text, config.max_position_embeddings)
    unlimited = Latency(float("inf"), context, batch, {})
    hiddens = [config.hidden_size]
    if "hidden" in axes:
        hiddens.append(min(options("hidden", config, multiple_of)))
    jobs: dict[str, list[tuple[Features, _Stack]]] = {}
    for kind in _KINDS:
        same = [sizes for sizes in config.blocks if isinstance(sizes, kind)]
        if not same:
            continue
        jobs[kind.__name__] = [
            (
                _features(sizes, hidden, unlimited),
                _Stack(config, sizes, hidden, len(same), context, batch, device, dtype),
            )
            for sizes in _sizes_to_time(kind, same, config, axes, multiple_of)
            for hidden in dict.fromkeys(hiddens)
        ]
    jobs["rest"] = [
        (
            (1.0, float(config.vocab_size * hidden), 0.0),
            _Stack(config, _SMALL, hidden, 1, context, batch, device, dtype),
        )
        for hidden in dict.fromkeys(hiddens)
    ]
    seconds = _time(jobs)
    rates = {
        name: fit([features for features, _ in timed], seconds[name])
        for name, timed in jobs.items()
    }
    whole = Latency(float("inf"), context, batch, rates).of(config)
    return Latency(share * whole, context, batch, rates)


@torch.inference_mode()
def step_seconds(
    models: Sequence[HybridForCausalLM], context: int, batch: int, rounds: int = _ROUNDS
) -> list[float]:
    """Return how long a decoding step of each model takes, measured in turn: the median."""
    caches = [_filled(model, context, batch) for model in models]
    samples: list[list[float]] = [[] for _ in models]
    for number in range(rounds + 1):
        for model, cache, seconds in zip(models, caches, samples, strict=True):
            ids = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
            took = _clock(model.device, partial(model, ids, cache=cache))
            if number:  # the first one warms up
                seconds.append(took)
    return [median(seconds) for seconds in samples]


def fit(features: Sequence[Features], seconds: Sequence[float]) -> Features:
    """Return rates that are not negative, by least squares of the relative errors.

    Args:
        features: of every sample.
        seconds: that it took.
    """
    wanted = torch.tensor(seconds, dtype=torch.float64)
    table = torch.tensor(features, dtype=torch.float64)
    scale = table.abs().amax(0).clamp(min=1e-30)
    table = table / scale / wanted[:, None]
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


def _sizes_to_time(
    kind: type[BlockSizes],
    same: list[BlockSizes],
    config: HybridConfig,
    axes: Sequence[str],
    multiple_of: int | None,
) -> list[BlockSizes]:
    """Return the sizes that there are, and each with one axis, and with all, at their least."""
    found = list(dict.fromkeys(same))
    for sizes in list(found):
        least = sizes
        for name in axes:
            axis = AXES.get(name)
            if isinstance(axis, BlockAxis) and axis.kind is kind and axis.places(config):
                count = min(options(name, config, multiple_of))
                found.append(axis.with_units(sizes, count))
                least = axis.with_units(least, count)
        found.append(least)
    return list(dict.fromkeys(found))


class _Stack:
    """Equal blocks on top of each other, with random weights and a full cache."""

    def __init__(
        self,
        config: HybridConfig,
        sizes: BlockSizes,
        hidden: int,
        depth: int,
        context: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        one = block_parameters(sizes, hidden) * dtype.itemsize
        self.depth = max(1, min(depth, _STACK_BYTES // one))
        self._alone = sizes is _SMALL  # then what is around the blocks is timed
        described = config.replace_blocks([sizes] * self.depth)
        described.hidden_size = hidden
        described.pad_token_id = None
        if not self._alone:
            described.vocab_size = 1
        with torch.device(device):
            self.model = HybridForCausalLM(described).eval()
        self.model.to(dtype=dtype)
        self._context, self._batch = context, batch

    def prepare(self) -> Callable[[], float]:
        """Return what takes one step and tells how long it took, per block."""
        model, device = self.model, self.model.device
        cache = _filled(model, self._context, self._batch)
        ids = torch.zeros(self._batch, 1, dtype=torch.long, device=device)
        if self._alone:
            return partial(_clock, device, partial(model, ids, cache=cache))
        x = torch.randn(self._batch, 1, model.config.hidden_size, device=device, dtype=model.dtype)

        def step() -> float:
            context = model.model.block_context(x, cache=cache)

            def run() -> None:
                y = x
                for block in model.model.blocks:
                    y = block(y, context)

            return _clock(device, run) / self.depth

        return step


@torch.inference_mode()
def _time(jobs: dict[str, list[tuple[Features, _Stack]]]) -> dict[str, list[float]]:
    """Time all stacks in turn, so that what else the machine does falls on all of them alike."""
    steps = {name: [stack.prepare() for _, stack in timed] for name, timed in jobs.items()}
    samples: dict[str, list[list[float]]] = {name: [[] for _ in s] for name, s in steps.items()}
    with console.progress("timing blocks", _ROUNDS + 1, "rounds") as progress:
        for number in range(_ROUNDS + 1):
            for name, of_kind in steps.items():
                for step, seconds in zip(of_kind, samples[name], strict=True):
                    took = step()
                    if number:  # the first one warms up
                        seconds.append(took)
            progress.advance()
    return {name: [median(seconds) for seconds in of_kind] for name, of_kind in samples.items()}


def _filled(model: HybridForCausalLM, context: int, batch: int) -> HybridCache:
    """Return a cache as it is behind a prompt."""
    cache = HybridCache(model.config)
    for place, sizes in enumerate(model.config.blocks):
        if isinstance(sizes, AttentionSizes):
            tokens = min(context, (sizes.sliding_window or context + 1) - 1)
            shape = (batch, sizes.num_kv_heads, tokens, sizes.head_dim)
            zeros = torch.zeros(shape, device=model.device, dtype=model.dtype)
            cache.update(zeros, zeros.clone(), place)
    with torch.inference_mode():  # and the states
        model(torch.zeros(batch, 1, dtype=torch.long, device=model.device), cache=cache)
    return cache


def _clock(device: torch.device, run: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _features(sizes: BlockSizes, hidden: int, at: Latency) -> Features:
    cache = block_cache_cost(sizes, at.context, 1)
    return (1.0, float(block_parameters(sizes, hidden)), float(at.batch * (cache.kv + cache.state)))


def _dot(rates: Features, features: Features) -> float:
    return sum(rate * feature for rate, feature in zip(rates, features, strict=True))
