"""Budgets of parameters and of memory. The budget of time is in `latency`."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from typing_extensions import override

from hybridize.compress.prune.budget_text import parse_memory, parse_params
from hybridize.modeling.costs import block_cache_cost
from hybridize.modeling.layers.sizes import BlockSizes
from hybridize.modeling.model_spec import ModelSpec
from hybridize.units import size_in_words


class Budget(ABC):
    """The maximum of a cost. The cost of a model is a sum over its blocks and the rest.

    Attributes:
        limit: the maximum cost.
    """

    limit: float

    @abstractmethod
    def block_cost(self, sizes: BlockSizes, hidden_size: int) -> float:
        """Return the cost of a block, including its norm."""

    @abstractmethod
    def rest_cost(self, config: ModelSpec, hidden_size: int) -> float:
        """Return the cost of everything outside the blocks: embeddings, head and last norm."""

    @abstractmethod
    def describe(self, cost: float) -> str:
        """Return a cost with its unit."""

    def cost(self, config: ModelSpec) -> float:
        """Return the cost of a model."""
        hidden_size = config.hidden_size
        blocks = sum(self.block_cost(block, hidden_size) for block in config.blocks)
        return self.rest_cost(config, hidden_size) + blocks


@dataclass(frozen=True)
class Parameters(Budget):
    """The number of parameters; tied parameters count once."""

    limit: float

    @override
    def block_cost(self, sizes: BlockSizes, hidden_size: int) -> float:
        return block_parameters(sizes, hidden_size)

    @override
    def rest_cost(self, config: ModelSpec, hidden_size: int) -> float:
        tables = 1 if config.tie_word_embeddings else 2
        return tables * config.vocab_size * hidden_size + hidden_size

    @override
    def describe(self, cost: float) -> str:
        return f"{cost:,.0f} parameters"


@dataclass(frozen=True)
class Memory(Budget):
    """The bytes of weights, keys and values, and states.

    Attributes:
        limit: bytes.
        context: tokens of each sequence.
        batch: number of sequences.
        element_size: bytes per element as stored; SSM states are float32.
        linear_element_size: bytes per element of the blocks' linear layers, which may be quantized.
        kv_element_size: bytes per element of keys and values, which may be quantized.
    """

    limit: float
    context: int
    batch: int
    element_size: int
    linear_element_size: float
    kv_element_size: float

    @override
    def block_cost(self, sizes: BlockSizes, hidden_size: int) -> float:
        cache = block_cache_cost(sizes, self.context, self.element_size)
        linear = _linear_parameters(sizes, hidden_size)
        weights = linear * self.linear_element_size
        weights += (block_parameters(sizes, hidden_size) - linear) * self.element_size
        kv = cache.kv / self.element_size * self.kv_element_size
        return weights + self.batch * (kv + cache.state)

    @override
    def rest_cost(self, config: ModelSpec, hidden_size: int) -> float:
        return Parameters(0).rest_cost(config, hidden_size) * self.element_size

    @override
    def describe(self, cost: float) -> str:
        sequences = f" × {self.batch}" if self.batch > 1 else ""
        return f"{size_in_words(int(cost))} at {self.context:,} tokens{sequences}"


def parameter_budget(text: str, config: ModelSpec) -> Parameters:
    """Return the budget that `params` describes.

    Args:
        text: see `parse_params`.
        config: the model that a percentage refers to.

    Raises:
        ValueError: the text has another form.
    """
    percent, count = parse_params(text)
    if percent is None:
        return Parameters(count or 0)
    return Parameters(math.floor(Parameters(math.inf).cost(config) * percent / 100))


def memory_budget(
    text: str, element_size: int, *, weight_bits: int | None = None, kv_bits: int | None = None
) -> Memory:
    """Return the budget that `memory` describes.

    Args:
        text: see `parse_memory`.
        element_size: bytes per element of the stored weights.
        weight_bits, kv_bits: bits per element of the blocks' linear layers, and of keys and values,
            if they will be quantized.

    Raises:
        ValueError: the text has another form.
    """
    limit, context, batch = parse_memory(text)
    linear_element_size = element_size if weight_bits is None else weight_bits / 8
    kv_element_size = element_size if kv_bits is None else kv_bits / 8
    return Memory(limit, context, batch, element_size, linear_element_size, kv_element_size)


@lru_cache(maxsize=100_000)
def _linear_parameters(sizes: BlockSizes, hidden_size: int) -> int:
    shapes = sizes.shapes(hidden_size).items()
    return sum(math.prod(shape) for name, shape in shapes if name.endswith("_proj.weight"))


@lru_cache(maxsize=100_000)
def block_parameters(sizes: BlockSizes, hidden_size: int) -> int:
    """Return the number of parameters of a block, including its norm."""
    return hidden_size + sum(math.prod(shape) for shape in sizes.shapes(hidden_size).values())
