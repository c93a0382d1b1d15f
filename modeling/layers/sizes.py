"""The sizes of a block and the shapes of its parameters: one dataclass per kind."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.modeling.layers.kinds import ATTENTION, MAMBA, MLP

Shapes = dict[str, tuple[int, ...]]


class BlockSizes(ABC):
    """The sizes of one block; subclasses are frozen dataclasses, one per kind of layer.

    Attributes:
        letter: the kind's letter in a layout; see `LAYER_KINDS`.
    """

    letter: ClassVar[str]

    @property
    @abstractmethod
    def layer_type(self) -> str:
        """Transformers' name of the kind, which determines the block's entry in the cache.

        One of ``full_attention``, ``sliding_attention``, ``linear_attention``, and ``moe``. Blocks
        without a cache are ``moe``, because transformers accepts no other name for them.
        """

    @abstractmethod
    def shapes(self, hidden: int) -> Shapes:
        """Return the shape of every parameter of the mixer by its name."""

    def cache_bytes(
        self, context: int, itemsize: int, *, preallocated: bool = False
    ) -> tuple[int, int]:
        """Return the bytes of one sequence's cache: keys and values, and states.

        For the arguments, see `hybridize.modeling.costs.cache_cost`.
        """
        del context, itemsize, preallocated
        return 0, 0

    @abstractmethod
    def describe(self) -> str:
        """Return the sizes as text, for tables."""


@dataclass(frozen=True)
class AttentionSizes(BlockSizes):
    """Causal attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245)."""

    letter = ATTENTION

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each query and key head, before RoPE (Qwen3)."""
    rope: bool = True
    scale: float | None = None
    """Factor of the attention scores; ``head_dim ** -0.5`` if None."""
    sliding_window: int | None = None
    """Number of tokens that a token attends to, itself included; all earlier ones if None."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads are not a multiple of {self.num_kv_heads} KV heads"
            )
        if self.sliding_window is not None:
            _require_positive(self, "sliding_window")
        if self.scale is not None and not is_number(self.scale):
            raise ValueError(f"scale is {self.scale!r}; it must be a finite number")

    @property
    @override
    def layer_type(self) -> str:
        return "full_attention" if self.sliding_window is None else "sliding_attention"

    @override
    def cache_bytes(
        self, context: int, itemsize: int, *, preallocated: bool = False
    ) -> tuple[int, int]:
        tokens = context
        if self.sliding_window is not None and not preallocated:
            tokens = min(context, self.sliding_window - 1)
        return 2 * tokens * self.num_kv_heads * self.head_dim * itemsize, 0

    @override
    def describe(self) -> str:
        parts = [f"{self.num_heads} heads × {self.head_dim}", f"{self.num_kv_heads} KV heads"]
        parts += ["query/key norm"] if self.qk_norm else []
        parts += ["biases"] if self.qkv_bias or self.out_bias else []
        parts += [] if self.rope else ["no RoPE"]
        parts += [f"window {self.sliding_window}"] if self.sliding_window else []
        return ", ".join(parts)

    @override
    def shapes(self, hidden: int) -> Shapes:
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: Shapes = {}
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes |= _linear(name, rows, hidden, self.qkv_bias)
        shapes |= _linear("o_proj", hidden, q, self.out_bias)
        if self.qk_norm:
            shapes |= {"q_norm.weight": (self.head_dim,), "k_norm.weight": (self.head_dim,)}
        return shapes


@dataclass(frozen=True)
class MambaSizes(BlockSizes):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060, section 7)."""

    letter = MAMBA

    num_heads: int
    head_dim: int
    n_groups: int
    d_state: int
    conv_kernel: int = 4
    conv_bias: bool = True
    proj_bias: bool = False
    dt_min: float = 0.0
    dt_max: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "num_heads", "head_dim", "n_groups", "d_state", "conv_kernel")
        if self.num_heads % self.n_groups:
            raise ValueError(
                f"{self.num_heads} Mamba heads are not a multiple of {self.n_groups} groups"
            )
        limits = (self.dt_min, 0.0 if self.dt_max is None else self.dt_max)
        if not all(is_number(limit) and 0 <= limit <= _MAX_DT for limit in limits):
            raise ValueError(
                f"dt_min {self.dt_min!r} and dt_max {self.dt_max!r} must be numbers from 0 to "
                f"{_MAX_DT:.0e}"
            )

    @property
    def d_inner(self) -> int:
        """Number of channels of x, of the gate and of the output projection's input."""
        return self.num_heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """Number of channels of the convolution: x, then B, then C."""
        return self.d_inner + 2 * self.n_groups * self.d_state

    @property
    def dt_limit(self) -> tuple[float, float]:
        """Limits of dt after softplus."""
        return (self.dt_min, float("inf") if self.dt_max is None else self.dt_max)

    def in_proj_splits(self) -> tuple[int, int, int, int, int]:
        """Return the numbers of rows of the input projection, in order: gate, x, B, C, dt."""
        bc = self.n_groups * self.d_state
        return (self.d_inner, self.d_inner, bc, bc, self.num_heads)

    @property
    @override
    def layer_type(self) -> str:
        return "linear_attention"

    @override
    def cache_bytes(
        self, context: int, itemsize: int, *, preallocated: bool = False
    ) -> tuple[int, int]:
        del context, preallocated
        ssm_state = self.d_inner * self.d_state * max(itemsize, 4)
        return 0, ssm_state + (self.conv_kernel - 1) * self.conv_channels * itemsize

    @override
    def describe(self) -> str:
        heads = f"{self.num_heads} heads × {self.head_dim}"
        return f"{heads}, state {self.d_state}, {self.n_groups} groups"

    @override
    def shapes(self, hidden: int) -> Shapes:
        shapes = _linear("in_proj", sum(self.in_proj_splits()), hidden, self.proj_bias)
        shapes["conv1d.weight"] = (self.conv_channels, 1, self.conv_kernel)
        if self.conv_bias:
            shapes["conv1d.bias"] = (self.conv_channels,)
        shapes |= dict.fromkeys(("dt_bias", "A_log", "D"), (self.num_heads,))
        shapes["norm.weight"] = (self.d_inner,)
        return shapes | _linear("out_proj", hidden, self.d_inner, self.proj_bias)


@dataclass(frozen=True)
class MLPSizes(BlockSizes):
    """A feed-forward block; gated as in SwiGLU (Shazeer 2020, arXiv 2002.05202), or plain."""

    letter = MLP

    intermediate_size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "intermediate_size")

    @property
    @override
    def layer_type(self) -> str:
        return "moe"

    @override
    def describe(self) -> str:
        gated = "gated " if self.gated else ""
        return f"width {self.intermediate_size}, {gated}{self.activation}"

    @override
    def shapes(self, hidden: int) -> Shapes:
        shapes = (
            _linear("gate_proj", self.intermediate_size, hidden, self.bias) if self.gated else {}
        )
        shapes |= _linear("up_proj", self.intermediate_size, hidden, self.bias)
        return shapes | _linear("down_proj", hidden, self.intermediate_size, self.bias)


_MAX_DT = 1e6  # with a larger dt, a state decays to zero within one token


def is_number(value: object) -> bool:
    """Return whether a value of a configuration is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_OLD_NAMES = {
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "groups": "n_groups",
    "conv_width": "conv_kernel",
    "width": "intermediate_size",
}
"""Field names in the ``config.json`` of earlier versions, and the current names."""


def with_current_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a block with old names replaced by the current ones.

    If both names are given, the old one stays, so that the class rejects it.
    """
    renamed = {old: new for old, new in _OLD_NAMES.items() if new not in fields}
    return {renamed.get(name, name): value for name, value in fields.items()}


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    if bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes


def _require_positive(sizes: BlockSizes, *names: str) -> None:
    for name in names:
        value = getattr(sizes, name)
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
