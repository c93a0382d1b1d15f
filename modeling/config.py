"""The configuration of a hybrid: what is global, and the sizes of every block."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from hybridize.modeling.layers.sizes import (
    AttentionSizes,
    BlockSizes,
    MambaSizes,
    MLPSizes,
    is_number,
    with_current_names,
)
from hybridize.modeling.layout import ATTENTION, KINDS, MAMBA, MLP, Layout

_SIZES: dict[str, type[BlockSizes]] = {
    ATTENTION: AttentionSizes,
    MAMBA: MambaSizes,
    MLP: MLPSizes,
}


_TOO_LARGE = 1 << 40  # for a size, and a tensor of it for every machine
_LARGEST = 1e9  # of anything that activations or weights are multiplied by


class HybridConfig(PreTrainedConfig):
    """One residual stream of pre-norm blocks, each with sizes of its own.

    On disk, ``attention``, ``mamba`` and ``mlp`` hold the sizes that most blocks of the kind
    share, and ``overrides`` maps a block's index to the fields in which it differs.
    `from_blocks` builds that from a list of sizes; `blocks` reads it back.

    Attributes:
        layout: one letter per block, see `Layout`.
        norm_eps: of every RMSNorm.
        rope_parameters: transformers' RoPE dictionary; one for all attention blocks.
        embedding_multiplier: what embeddings are multiplied by (Granite).
        residual_multiplier: what a block's output is multiplied by before it is added (Granite).
        logits_scaling: what logits are divided by (Granite).
        residual_in_fp32: keep the residual stream in float32 (Mamba-2).
    """

    model_type = "hybridize"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]

    vocab_size: int = 32000
    hidden_size: int = 4096
    layout: str = "M-"
    attention: dict[str, Any] | None = None
    mamba: dict[str, Any] | None = None
    mlp: dict[str, Any] | None = None
    overrides: dict[str, dict[str, Any]] | None = None
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

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the blocks and check that they fit together.

        Raises:
            ValueError: sizes that contradict each other or the layout.
        """
        if self.mamba is None and self.attention is None and self.mlp is None:
            # transformers instantiates every configuration without arguments now and then.
            self.mamba = {"num_heads": 128, "head_dim": 64, "n_groups": 8, "d_state": 128}
            self.mlp = {"intermediate_size": 16384}
        self._replace_old_names()
        self.rope_parameters = dict(self.rope_parameters or {})
        kwargs.pop("num_hidden_layers", None)
        super().__post_init__(**kwargs)
        self._check_numbers()
        rotary = {s.head_dim for s in self._attention_blocks() if s.rope}
        windows = {s.sliding_window for s in self._attention_blocks()} - {None}
        pad, vocab = self.pad_token_id, self.vocab_size
        if pad is not None and not -vocab <= pad < vocab:
            raise ValueError(f"pad_token_id {pad} lies outside the vocabulary of {vocab}")
        for block in self.blocks:
            if isinstance(block, MLPSizes) and block.activation not in ACT2FN:
                raise ValueError(f"activation {block.activation!r} is not known to transformers")
        if len(rotary) > 1:
            raise ValueError(f"attention blocks with RoPE differ in head_dim: {sorted(rotary)}")
        if len(windows) > 1:
            raise ValueError("attention blocks differ in their sliding window")

    def _replace_old_names(self) -> None:
        """Accept the field names of older directories; see `with_current_names`."""
        for kind in KINDS.values():
            sizes = getattr(self, kind)
            if isinstance(sizes, dict):
                setattr(self, kind, with_current_names(sizes))
        if isinstance(self.overrides, dict):
            self.overrides = {
                index: with_current_names(sizes) if isinstance(sizes, dict) else sizes
                for index, sizes in self.overrides.items()
            }

    def _check_numbers(self) -> None:
        for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 < value < _TOO_LARGE:
                raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
        for name in (
            "norm_eps", "embedding_multiplier", "residual_multiplier", "logits_scaling",
            "initializer_range",
        ):  # fmt: skip
            value = getattr(self, name)
            if not is_number(value) or abs(value) > _LARGEST:
                raise ValueError(f"{name} is {value!r}; it must be a number that makes sense")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            tokens = value if isinstance(value, list | tuple) else [value]
            if value is not None and not all(isinstance(token, int) for token in tokens):
                raise ValueError(f"{name} is {value!r}; it must be a token's number")
        if self.norm_eps < 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must not be negative")
        if self.logits_scaling == 0:
            raise ValueError("logits_scaling is 0, and logits are divided by it")

    @classmethod
    def from_blocks(cls, blocks: Iterable[BlockSizes], **fields: Any) -> "HybridConfig":
        """Describe a model by the sizes of its blocks, in order.

        Args:
            blocks: one entry per block.
            fields: everything else that the class has.
        """
        blocks = list(blocks)
        letters = {sizes: letter for letter, sizes in _SIZES.items()}
        layout = "".join(letters[type(block)] for block in blocks)
        common: dict[str, Any] = {}
        overrides: dict[str, dict[str, Any]] = {}
        for letter, kind in KINDS.items():
            of_kind = [block for block in blocks if letters[type(block)] == letter]
            if of_kind:
                common[kind] = dataclasses.asdict(Counter(of_kind).most_common(1)[0][0])
        for index, block in enumerate(blocks):
            usual = common[KINDS[letters[type(block)]]]
            differs = {k: v for k, v in dataclasses.asdict(block).items() if v != usual[k]}
            if differs:
                overrides[str(index)] = differs
        sizes = {"layout": layout, **common, "overrides": overrides or None}
        return cls(**sizes, **fields)

    @property
    def blocks(self) -> tuple[BlockSizes, ...]:
        """The sizes of every block, in order."""
        overrides = self.overrides or {}
        result = []
        for index, letter in enumerate(Layout(self.layout)):
            fields = getattr(self, KINDS[letter])
            if fields is None:
                raise ValueError(f"layout has {letter!r} blocks but no {KINDS[letter]!r} sizes")
            fields = {**fields, **overrides.get(str(index), {})}
            try:
                result.append(_SIZES[letter](**fields))
            except (TypeError, ValueError) as error:
                raise ValueError(f"block {index} ({KINDS[letter]}): {error}") from None
        return tuple(result)

    def replace_blocks(self, blocks: Iterable[BlockSizes]) -> "HybridConfig":
        """Return the same configuration with other blocks."""
        drop = {"layout", "attention", "mamba", "mlp", "overrides", "model_type"}
        fields = {key: value for key, value in self.to_dict().items() if key not in drop}
        return type(self).from_blocks(blocks, **fields)

    def _attention_blocks(self) -> list[AttentionSizes]:
        return [block for block in self.blocks if isinstance(block, AttentionSizes)]

    # What transformers' caches, masks and RoPE initializers ask a configuration for.

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks: each has a place in the cache."""
        return len(self.layout)

    @property
    def layer_types(self) -> list[str]:
        """The blocks in transformers' words."""
        # "moe" is the only name for a block without a cache that transformers' checks let pass.
        names = {MambaSizes: "linear_attention", MLPSizes: "moe"}
        return [
            names[type(block)]
            if not isinstance(block, AttentionSizes)
            else ("full_attention" if block.sliding_window is None else "sliding_attention")
            for block in self.blocks
        ]

    @property
    def sliding_window(self) -> int | None:
        """The window of the attention blocks that have one."""
        windows = (block.sliding_window for block in self._attention_blocks())
        return next((window for window in windows if window is not None), None)

    @property
    def num_attention_heads(self) -> int | None:
        """Query heads of the first attention block."""
        return next((block.num_heads for block in self._attention_blocks()), None)

    @property
    def num_key_value_heads(self) -> int | None:
        """Key/value heads of the first attention block."""
        return next((block.num_kv_heads for block in self._attention_blocks()), None)

    @property
    def head_dim(self) -> int | None:
        """Width of an attention head that RoPE turns."""
        return next((block.head_dim for block in self._attention_blocks() if block.rope), None)


def parameter_shapes(config: HybridConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter of the model: its name to its shape, in the model's order."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index, block in enumerate(config.blocks):
        prefix = f"model.blocks.{index}."
        shapes[f"{prefix}norm.weight"] = (hidden,)
        shapes |= {f"{prefix}mixer.{k}": shape for k, shape in block.shapes(hidden).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes
