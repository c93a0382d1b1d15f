"""The base class of Llama and the Transformers that descend from it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from typing_extensions import override

from hybridize.checkpoints.formats.base import (
    DECODER_MIXERS,
    DECODER_NORMS,
    Fit,
    Format,
    Names,
    require,
    require_default_scale,
    require_full_rotation,
    require_layers,
    require_no_multipliers,
    uniform,
    written_fields,
)
from hybridize.checkpoints.formats.fields import (
    Field,
    Raw,
    common_fields,
    float_field,
    int_field,
    read_fields,
    str_field,
    str_list_field,
)
from hybridize.checkpoints.formats.known_fields import ROPE
from hybridize.checkpoints.formats.read_model import build_spec, head_dim, layer_kinds, num_kv_heads
from hybridize.checkpoints.formats.rope import read_rope, written_rope
from hybridize.modeling.layers.kinds import MAMBA
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec, attention_blocks

_LAYER_TYPES = ("full_attention", "sliding_attention")


def transformer_fields(
    *, vocab_size: int, intermediate_size: int, max_position_embeddings: int,
    kv_heads: int | None, bos: int | None = None, eos: int | None = None,
) -> dict[str, Field]:  # fmt: skip
    """Return the fields that all of these formats have, with the defaults of the given format."""
    return {
        **common_fields(
            vocab_size=vocab_size, max_position_embeddings=max_position_embeddings, bos=bos, eos=eos
        ),
        "intermediate_size": int_field(intermediate_size),
        "num_hidden_layers": int_field(32),
        "num_attention_heads": int_field(32),
        "num_key_value_heads": int_field(kv_heads, optional=True),
        "head_dim": int_field(None),
        "hidden_act": str_field("silu"),
        "rms_norm_eps": float_field(1e-6),
        "layer_types": str_list_field(),
    }


class TransformerFormat(Format):
    """Layers of attention with RoPE and a gated MLP.

    Subclasses say which biases, norms and windows the attention may have.
    """

    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        norms=DECODER_NORMS,
        mixers=DECODER_MIXERS,
        blocks_per_layer=2,
    )
    also_read = ROPE
    stores_mamba = False

    @override
    def to_spec(self, raw: Raw) -> ModelSpec:
        source = read_fields(raw, self.fields)
        attention = AttentionSizes(
            num_heads=source.num_attention_heads,
            num_kv_heads=num_kv_heads(source),
            head_dim=head_dim(source),
            **self.read_attention(source),
        )
        mlp = MLPSizes(
            intermediate_size=source.intermediate_size,
            activation=source.hidden_act,
            bias=getattr(source, "mlp_bias", False),
        )
        blocks: list[BlockSizes] = []
        for kind in self.layer_types(source):
            full = kind == "full_attention"
            blocks += [replace(attention, sliding_window=None) if full else attention, mlp]
        return build_spec(
            raw,
            source,
            blocks,
            norm_eps=source.rms_norm_eps,
            rope_parameters=read_rope(raw, whole_heads=True),
        )

    @abstractmethod
    def read_attention(self, source: SimpleNamespace) -> dict[str, Any]:
        """Return the fields of `AttentionSizes` in which the format differs from Llama.

        Args:
            source: the fields of config.json.
        """

    def layer_types(self, source: SimpleNamespace) -> Sequence[str]:
        """Return the kind of every layer: ``full_attention`` or ``sliding_attention``."""
        if source.layer_types is None:
            # If the model has no window, both kinds mean the same.
            return ["sliding_attention"] * source.num_hidden_layers
        return layer_kinds(source.layer_types, _LAYER_TYPES, source.num_hidden_layers)

    def require_plain(self, spec: ModelSpec) -> None:
        """Check what all of these formats require; `require_attention` checks the rest.

        Raises:
            CannotStoreError: the format cannot store the model.
        """
        require_layers(spec)
        require(MAMBA not in spec.layout, "the format has no Mamba-2 blocks")
        require(
            not spec.residual_in_fp32, "the format does not keep the residual stream in float32"
        )
        require_no_multipliers(spec)
        mlp = uniform(spec, MLPSizes)
        require(mlp is not None and mlp.gated, "the format has gated MLPs only")
        for block in attention_blocks(spec.blocks):
            require(block.rope, "the format's attention always has RoPE")
            require_default_scale(block)
        require_full_rotation(spec)

    @override
    def fit(self, spec: ModelSpec) -> Fit:
        self.require_plain(spec)
        self.require_attention(spec)
        return Fit(spec)

    @abstractmethod
    def require_attention(self, spec: ModelSpec) -> None:
        """Check that the format can store the attention blocks.

        Raises:
            CannotStoreError: it cannot.
        """

    def written(self, spec: ModelSpec, architecture: str) -> Raw:
        """Return the fields that the config.json of all of these formats has.

        Args:
            spec: the model.
            architecture: transformers' class.
        """
        attention = attention_blocks(spec.blocks)[0]
        mlp = uniform(spec, MLPSizes)
        assert mlp is not None
        return {
            "architectures": [architecture],
            "model_type": self.name,
            **written_fields(spec),
            "num_hidden_layers": len(spec.layout) // 2,
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_kv_heads,
            "head_dim": attention.head_dim,
            "intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "rms_norm_eps": spec.norm_eps,
            **written_rope(spec),
        }
