"""What a model may cost: in parameters, in memory at a context length; for time see `latency`."""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from hybridize.console import size_in_words
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.costs import block_cache_cost
from hybridize.modeling.layers.sizes import BlockSizes

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_WHERE = r"@(\d+)(k?)(?:x(\d+))?"
_USUAL_CONTEXT = 4096
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
        return block_parameters(sizes, hidden)

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
        linear_width: the same for the blocks' linear layers, which quantization shrinks.
        kv_width: the same for keys and values.
    """

    limit: float
    context: int
    batch: int
    width: int
    linear_width: float
    kv_width: float

    def of_block(self, sizes: BlockSizes, hidden: int) -> float:
        """See `Budget.of_block`."""
        cache = block_cache_cost(sizes, self.context, self.width)
        linear = _linear_parameters(sizes, hidden)
        weights = linear * self.linear_width
        weights += (block_parameters(sizes, hidden) - linear) * self.width
        return weights + self.batch * (cache.kv / self.width * self.kv_width + cache.state)

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


def parse_memory(
    text: str, width: int, *, weight_bits: int | None = None, kv_bits: int | None = None
) -> Memory:
    """Read ``--memory``: ``SIZE@CONTEXT`` or ``SIZE@CONTEXTxBATCH``, as in ``24GiB@65536x4``.

    Args:
        text: what was given.
        width: bytes per element of the weights that will be stored.
        weight_bits, kv_bits: of the blocks' linear layers, and of keys and values, if they are
            going to be quantized.

    Raises:
        InputError: it is not of that form.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*([kmg]i?b){_WHERE}", text.strip().lower())
    if match is None:
        raise InputError(f"--memory {text}: give SIZE@CONTEXT[xBATCH], such as 24GiB@65536x4")
    limit = float(match[1]) * _UNITS[match[2].upper()]
    context, batch = _where(match)
    if not limit or not context or not batch:
        raise InputError(f"--memory {text}: size, context and batch have to be more than 0")
    linear_width = width if weight_bits is None else weight_bits / 8
    kv_width = width if kv_bits is None else kv_bits / 8
    return Memory(limit, context, batch, width, linear_width, kv_width)


def parse_latency(text: str, longest: int) -> tuple[float, int, int]:
    """Read ``--latency``: ``SHARE``, ``SHARE@CONTEXT`` or ``SHARE@CONTEXTxBATCH``.

    Args:
        text: what was given, such as ``0.7``, ``70%`` or ``0.7@65536x4``.
        longest: the model's own context, which is the most that is assumed if none is given.

    Returns:
        The share, the context and the batch.

    Raises:
        InputError: it is not of that form.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)(%?)(?:{_WHERE})?", text.strip().lower())
    if match is None:
        raise InputError(f"--latency {text}: give SHARE[@CONTEXT[xBATCH]], such as 0.7@65536x4")
    share = float(match[1]) / (100 if match[2] else 1)
    context, batch = _where(match) if match[3] else (min(_USUAL_CONTEXT, longest), 1)
    if not 0 < share <= 1 or not context or not batch:
        raise InputError(f"--latency {text}: give a share from 0 to 1, context and batch above 0")
    return share, context, batch


def _where(match: re.Match[str]) -> tuple[int, int]:
    context, thousands, batch = match.group(3, 4, 5)
    return int(context) * (1024 if thousands else 1), int(batch or 1)


@lru_cache(maxsize=100_000)
def _linear_parameters(sizes: BlockSizes, hidden: int) -> int:
    shapes = sizes.shapes(hidden).items()
    return sum(math.prod(shape) for name, shape in shapes if name.endswith("_proj.weight"))


@lru_cache(maxsize=100_000)
def block_parameters(sizes: BlockSizes, hidden: int) -> int:
    """Return how many parameters a block has, its norm included."""
    return hidden + sum(math.prod(shape) for shape in sizes.shapes(hidden).values())
