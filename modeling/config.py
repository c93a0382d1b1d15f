"""The configuration of a hybrid, in the form that transformers needs."""

from collections.abc import Iterable
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.modeling.layers.sizes import BlockSizes
from hybridize.modeling.model_spec import (
    SHARED_FIELDS,
    ModelSpec,
    attention_blocks,
    common_sliding_window,
    pack_blocks,
    rotary_head_dim,
    unpack_blocks,
)


class HybridConfig(PreTrainedConfig):
    """One residual stream of pre-norm blocks, each with its own sizes; see `ModelSpec`.

    The blocks are stored as `pack_blocks` packs them. `from_blocks` and `from_spec` build a
    configuration from a list of sizes; the properties `blocks` and `spec` return it.

    Attributes:
        layout: one letter per block, see `Layout`.
        attention, mamba, mlp: the sizes of most blocks of the kind.
        overrides: maps the index of a block to the fields in which it differs.

    The other attributes are those of `ModelSpec`.
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
        for kind in LAYER_KINDS.values():  # an added kind has no field above
            if kind.name in kwargs:
                setattr(self, kind.name, kwargs.pop(kind.name))
        if not any(getattr(self, kind.name, None) for kind in LAYER_KINDS.values()):
            # Transformers sometimes instantiates a configuration without arguments.
            self.mamba = {"num_heads": 128, "head_dim": 64, "n_groups": 8, "d_state": 128}
            self.mlp = {"intermediate_size": 16384}
        # `unpack_blocks` also reads the field names of earlier versions.
        packed = pack_blocks(unpack_blocks(self._packed()))
        self.overrides = packed.pop("overrides")
        for name, value in packed.items():
            setattr(self, name, value)
        self.rope_parameters = dict(self.rope_parameters or {})
        kwargs.pop("num_hidden_layers", None)
        super().__post_init__(**kwargs)
        _ = self.spec  # checks the values

    def _packed(self) -> dict[str, Any]:
        names = ("layout", "overrides", *(kind.name for kind in LAYER_KINDS.values()))
        return {name: getattr(self, name, None) for name in names}

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "HybridConfig":
        """Return the configuration of a model that is given as plain data."""
        fields = {name: getattr(spec, name) for name in SHARED_FIELDS}
        return cls(**pack_blocks(spec.blocks), **fields, dtype=spec.dtype)

    @classmethod
    def from_blocks(cls, blocks: Iterable[BlockSizes], **fields: Any) -> "HybridConfig":
        """Return the configuration of a model with these blocks.

        Args:
            blocks: the sizes of every block, in order.
            fields: the other attributes of the class.
        """
        return cls(**pack_blocks(blocks), **fields)

    @property
    def spec(self) -> ModelSpec:
        """The same model as plain data."""
        fields = {name: getattr(self, name) for name in SHARED_FIELDS}
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return ModelSpec(blocks=self.blocks, **fields, dtype=dtype)

    @property
    def blocks(self) -> tuple[BlockSizes, ...]:
        """The sizes of every block, in order."""
        return unpack_blocks(self._packed())

    # Transformers' caches, masks and RoPE initializers read the following properties.

    @property
    def num_hidden_layers(self) -> int:
        """The number of blocks; each has an entry in the cache."""
        return len(self.layout)

    @property
    def layer_types(self) -> list[str]:
        """The kind of every block, by transformers' names."""
        return [block.layer_type for block in self.blocks]

    @property
    def sliding_window(self) -> int | None:
        """The window of the attention blocks that have one."""
        return common_sliding_window(self.blocks)

    @property
    def num_attention_heads(self) -> int | None:
        """The query heads of the first attention block."""
        return next((block.num_heads for block in attention_blocks(self.blocks)), None)

    @property
    def num_key_value_heads(self) -> int | None:
        """The key/value heads of the first attention block."""
        return next((block.num_kv_heads for block in attention_blocks(self.blocks)), None)

    @property
    def head_dim(self) -> int | None:
        """The width of the attention heads that RoPE rotates."""
        return rotary_head_dim(self.blocks)
