"""A model as plain data: the sizes of every block and the numbers that blocks share.

Reading, planning and writing checkpoints needs only this. Nothing here imports torch or
transformers. `hybridize.modeling.config.HybridConfig` is the same data in transformers' form.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.modeling.layers.sizes import (
    AttentionSizes,
    BlockSizes,
    MLPSizes,
    is_number,
    with_current_names,
)
from hybridize.modeling.layout import Layout
from hybridize.modeling.rope_parameters import check_rope_parameters, standardize_rope

ACTIVATIONS = frozenset(
    (
        "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
        "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear",
        "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus",
        "swish", "tanh", "xielu",
    )
)  # fmt: skip
"""Transformers' names of activation functions."""

_TOO_LARGE = 1 << 40  # larger than the memory of any machine
_MAX_FACTOR = 1e9  # limit of all numbers that weights or activations are multiplied by


@dataclass(frozen=True)
class ModelSpec:
    """One residual stream of pre-norm blocks, each with its own sizes.

    Attributes:
        blocks: the sizes of every block, in order.
        norm_eps: epsilon of every RMSNorm.
        rope_parameters: transformers' RoPE dictionary, the same for all attention blocks;
            defaults are filled in.
        embedding_multiplier: embeddings are multiplied by it (Granite).
        residual_multiplier: the output of a block is multiplied by it before it is added (Granite).
        logits_scaling: logits are divided by it (Granite).
        residual_in_fp32: keep the residual stream in float32 (Mamba-2).
        dtype: torch's name of the dtype of the weights, such as ``"bfloat16"``, if it is known.

    Raises:
        ValueError: values that are out of range or contradict each other.
    """

    blocks: tuple[BlockSizes, ...]
    _: KW_ONLY
    vocab_size: int = 32000
    hidden_size: int = 4096
    norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_in_fp32: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        _check_numbers(self)
        rope = standardize_rope(self.rope_parameters, self.max_position_embeddings)
        object.__setattr__(self, "rope_parameters", rope)
        _check_blocks(self)

    @property
    def layout(self) -> str:
        """One letter per block; see `Layout`."""
        return "".join(block.letter for block in self.blocks)

    @property
    def rope(self) -> dict[str, Any]:
        """The RoPE parameters, never None."""
        assert self.rope_parameters is not None
        return self.rope_parameters

    @property
    def sliding_window(self) -> int | None:
        """The window of the attention blocks that have one."""
        return common_sliding_window(self.blocks)

    @property
    def head_dim(self) -> int | None:
        """The width of the attention heads that RoPE rotates."""
        return rotary_head_dim(self.blocks)

    def replace_blocks(self, blocks: Iterable[BlockSizes]) -> "ModelSpec":
        """Return the same model with other blocks."""
        return replace(self, blocks=tuple(blocks))


SHARED_FIELDS = tuple(
    field.name for field in dataclasses.fields(ModelSpec) if field.name not in ("blocks", "dtype")
)
"""The fields of `ModelSpec` that all blocks share."""


def parameter_shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its name, in the model's order."""
    hidden = model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    for index, block in enumerate(model.blocks):
        prefix = f"model.blocks.{index}."
        shapes[f"{prefix}norm.weight"] = (hidden,)
        shapes |= {f"{prefix}mixer.{k}": shape for k, shape in block.shapes(hidden).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return shapes


def attention_blocks(blocks: Iterable[BlockSizes]) -> list[AttentionSizes]:
    """Return the attention blocks among ``blocks``."""
    return [block for block in blocks if isinstance(block, AttentionSizes)]


def common_sliding_window(blocks: Iterable[BlockSizes]) -> int | None:
    """Return the window of the attention blocks that have one; None if no block has one."""
    windows = (block.sliding_window for block in attention_blocks(blocks))
    return next((window for window in windows if window is not None), None)


def rotary_head_dim(blocks: Iterable[BlockSizes]) -> int | None:
    """Return the width of the attention heads that RoPE rotates; None without RoPE."""
    return next((block.head_dim for block in attention_blocks(blocks) if block.rope), None)


def pack_blocks(blocks: Iterable[BlockSizes]) -> dict[str, Any]:
    """Return blocks as they are written to config.json: ``layout``, sizes and ``overrides``.

    ``attention``, ``mamba`` and ``mlp`` are the most common sizes of each kind. ``overrides`` maps
    the index of a block to the fields in which it differs.
    """
    blocks = list(blocks)
    layout = "".join(block.letter for block in blocks)
    common: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    for letter, kind in LAYER_KINDS.items():
        of_kind = [block for block in blocks if block.letter == letter]
        if of_kind:
            common[kind.name] = dict(vars(Counter(of_kind).most_common(1)[0][0]))
    for index, block in enumerate(blocks):
        most_common = common[LAYER_KINDS[block.letter].name]
        differing = {k: v for k, v in vars(block).items() if v != most_common[k]}
        if differing:
            overrides[str(index)] = differing
    return {"layout": layout, **common, "overrides": overrides or None}


def unpack_blocks(packed: Mapping[str, Any]) -> tuple[BlockSizes, ...]:
    """Undo `pack_blocks`.

    Raises:
        ValueError: the layout has unknown letters, or sizes are missing or wrong.
    """
    overrides = packed.get("overrides") or {}
    result = []
    for index, letter in enumerate(Layout(packed["layout"])):
        kind = LAYER_KINDS[letter]
        fields = packed.get(kind.name)
        if fields is None:
            raise ValueError(f"layout has {letter!r} blocks but no {kind.name!r} sizes")
        try:
            own = with_current_names(overrides.get(str(index)) or {})
            result.append(kind.sizes_class()(**{**with_current_names(fields), **own}))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"block {index} ({kind.name}): {error}") from None
    return tuple(result)


def _check_numbers(model: ModelSpec) -> None:
    for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
        value = getattr(model, name)
        if not _is_int(value) or not 0 < value < _TOO_LARGE:
            raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
    for name in (
        "norm_eps", "embedding_multiplier", "residual_multiplier", "logits_scaling",
        "initializer_range",
    ):  # fmt: skip
        value = getattr(model, name)
        if not is_number(value) or abs(value) > _MAX_FACTOR:
            raise ValueError(f"{name} is {value!r}; it must be a number of at most {_MAX_FACTOR}")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(model, name)
        tokens = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(_is_int(token) for token in tokens):
            raise ValueError(f"{name} is {value!r}; it must be a token id")
    if model.norm_eps < 0:
        raise ValueError(f"norm_eps is {model.norm_eps}; it must not be negative")
    if model.logits_scaling == 0:
        raise ValueError("logits_scaling is 0, and logits are divided by it")
    pad, vocab = model.pad_token_id, model.vocab_size
    if pad is not None and not -vocab <= pad < vocab:
        raise ValueError(f"pad_token_id {pad} lies outside the vocabulary of {vocab}")


def _check_blocks(model: ModelSpec) -> None:
    if not model.blocks:
        raise ValueError("the model has no blocks")
    for block in model.blocks:
        if isinstance(block, MLPSizes) and not _is_activation(block.activation):
            raise ValueError(f"activation {block.activation!r} is not known to transformers")
    attention = attention_blocks(model.blocks)
    rotary = {block.head_dim for block in attention if block.rope}
    if len(rotary) > 1:
        raise ValueError(f"attention blocks with RoPE differ in head_dim: {sorted(rotary)}")
    if len({block.sliding_window for block in attention} - {None}) > 1:
        raise ValueError("attention blocks differ in their sliding window")
    if rotary:
        check_rope_parameters(model.rope)


def _is_activation(value: object) -> bool:
    return isinstance(value, str) and value in ACTIVATIONS


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
