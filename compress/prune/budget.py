"""What a model may cost: in parameters, in memory at a context length."""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from hybridize.console import size_in_words
from hybridize.errors import InputError
from hybridize.modeling.blocks.sizes import BlockSizes
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.costs import block_cache_cost

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9}


class Budget(ABC):
    """A limit on a cost that adds up over a model's blocks.

    Attributes:
        limit: the most that the cost may be.
    """

    limit: float

    @abstractmethod
    def of_block(self, sizes: BlockSizes, hidden: int) -> float:
        """Return what a block costs, with its norm."""

    @abstractmethod
    def of_rest(self, config: HybridConfig, hidden: int) -> float:
        """Return what embeddings, head and last norm cost at a hidden size."""

    @abstractmethod
    def in_words(self, cost: float) -> str:
        """Say a cost with its unit."""

    def of(self, config: HybridConfig) -> float:
        """Return what a model costs."""
        hidden = config.hidden_size
        blocks = sum(self.of_block(block, hidden) for block in config.blocks)
        return self.of_rest(config, hidden) + blocks


@dataclass(frozen=True)
class Parameters(Budget):
    """A number of parameters; shared ones count once."""

    limit: float

    def of_block(self, sizes: BlockSizes, hidden: int) -> float:
        """See `Budget.of_block`."""
        return _block_parameters(sizes, hidden)

    def of_rest(self, config: HybridConfig, hidden: int) -> float:
        """See `Budget.of_rest`."""
        tables = 1 if config.tie_word_embeddings else 2
        return tables * config.vocab_size * hidden + hidden

    def in_words(self, cost: float) -> str:
        """See `Budget.in_words`."""
        return f"{cost:,.0f} parameters"


@dataclass(frozen=True)
class Memory(Budget):
    """Bytes of weights, keys and values, and states.

    Attributes:
        limit: bytes.
        context: tokens of each sequence.
        batch: sequences at a time.
        width: bytes per element as stored; SSM states are float32.
    """

    limit: float
    context: int
    batch: int
    width: int

    def of_block(self, sizes: BlockSizes, hidden: int) -> float:
        """See `Budget.of_block`."""
        cache = block_cache_cost(sizes, self.context, self.width)
        weights = _block_parameters(sizes, hidden) * self.width
        return weights + self.batch * (cache.kv + cache.state)

    def of_rest(self, config: HybridConfig, hidden: int) -> float:
        """See `Budget.of_rest`."""
        return Parameters(0).of_rest(config, hidden) * self.width

    def in_words(self, cost: float) -> str:
        """See `Budget.in_words`."""
        sequences = f" × {self.batch}" if self.batch > 1 else ""
        return f"{size_in_words(int(cost))} at {self.context:,} tokens{sequences}"


def parse_parameters(text: str, config: HybridConfig) -> Parameters:
    """Read ``--params``: a share of the model's own (``70%``) or a number (``1.3B``).

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([%kmb]?)", text.strip().lower())
    number = float(match[1]) if match else 0.0
    if match is None or not number or (match[2] == "%" and number > 100):
        raise InputError(f"--params {text}: give a share like 70% or a number like 1.3B")
    whole = Parameters(math.inf).of(config)
    if match[2] == "%":
        return Parameters(math.floor(whole * number / 100))
    return Parameters(math.floor(number * _COUNTS.get(match[2], 1)))


def parse_memory(text: str, width: int) -> Memory:
    """Read ``--memory``: ``SIZE@CONTEXT`` or ``SIZE@CONTEXTxBATCH``, as in ``24GiB@65536x4``.

    Args:
        text: what was given.
        width: bytes per element of the weights that will be stored.

    Raises:
        InputError: it is not of that form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b)@(\d+)(k?)(?:x(\d+))?", text.strip().lower())
    if match is None:
        raise InputError(f"--memory {text}: give SIZE@CONTEXT[xBATCH], such as 24GiB@65536x4")
    limit = float(match[1]) * _UNITS[match[2].upper()]
    context = int(match[3]) * (1024 if match[4] else 1)
    batch = int(match[5] or 1)
    if not limit or not context or not batch:
        raise InputError(f"--memory {text}: size, context and batch have to be more than 0")
    return Memory(limit, context, batch, width)


@lru_cache(maxsize=100_000)
def _block_parameters(sizes: BlockSizes, hidden: int) -> int:
    return hidden + sum(math.prod(shape) for shape in sizes.shapes(hidden).values())
