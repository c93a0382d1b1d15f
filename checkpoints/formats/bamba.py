"""Bamba, the stock hybrid whose MLP may have biases; vLLM 0.23 was the last to read it."""

from typing_extensions import override

from hybridize.checkpoints.formats.base import (
    DECODER_MIXERS,
    DECODER_NORMS,
    Fit,
    Format,
    Names,
    require,
    require_default_scale,
    require_no_multipliers,
    uniform,
    written_fields,
)
from hybridize.checkpoints.formats.fields import (
    Raw,
    bool_field,
    common_fields,
    float_field,
    int_field,
    int_list_field,
    read_fields,
)
from hybridize.checkpoints.formats.known_fields import ROPE
from hybridize.checkpoints.formats.read_model import build_spec
from hybridize.checkpoints.formats.rope import read_rope, written_rope
from hybridize.checkpoints.formats.stock_hybrid import (
    FULL,
    LINEAR,
    STOCK_FIELDS,
    STOCK_NO_INFLUENCE,
    fit_stock,
    read_attention,
    read_blocks,
    uniform_attention,
    written_attention,
    written_mamba,
)
from hybridize.modeling.layers.kinds import ATTENTION, MLP
from hybridize.modeling.layers.sizes import MLPSizes
from hybridize.modeling.model_spec import ModelSpec

_DEFAULT_ROTARY_FACTOR = 0.5  # fixed in transformers, unless `rope_parameters` has another value

_FIELDS = {
    **common_fields(vocab_size=128000, max_position_embeddings=262144, bos=1, eos=2, pad=0),
    **STOCK_FIELDS,
    "intermediate_size": int_field(14336),
    "num_key_value_heads": int_field(8, optional=True),
    "rms_norm_eps": float_field(1e-5),
    "attn_layer_indices": int_list_field(),
    "mlp_bias": bool_field(False),
}


class Bamba(Format):
    """``model_type: bamba``."""

    name = "bamba"
    fields = _FIELDS
    also_read = ROPE
    no_influence = (*STOCK_NO_INFLUENCE, "z_loss_coefficient")
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.final_layernorm",
        norms={**DECODER_NORMS, MLP: "model.layers.{}.pre_ff_layernorm"},
        mixers={**DECODER_MIXERS, MLP: "model.layers.{}.feed_forward"},
        blocks_per_layer=2,
    )

    @override
    def to_spec(self, raw: Raw) -> ModelSpec:
        for name in ("layer_types", "layers_block_type"):
            if name in raw:
                raise ValueError(f"{name} is not a field of bamba; it has attn_layer_indices")
        source = read_fields(raw, _FIELDS)
        mlp = MLPSizes(source.intermediate_size, activation=source.hidden_act, bias=source.mlp_bias)
        attention_layers = source.attn_layer_indices or ()
        kinds = [
            FULL if layer in attention_layers else LINEAR
            for layer in range(source.num_hidden_layers)
        ]
        return build_spec(
            raw,
            source,
            read_blocks(source, kinds, read_attention(source), mlp),
            norm_eps=source.rms_norm_eps,
            rope_parameters=read_rope(raw, partial_rotary_factor=_DEFAULT_ROTARY_FACTOR),
        )

    @override
    def fit(self, spec: ModelSpec) -> Fit:
        require_no_multipliers(spec)
        fit = fit_stock(spec)
        attention = uniform_attention(fit.spec)
        require(attention.rope, "the format's attention always has RoPE")
        require_default_scale(attention)
        return fit

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        mlp = uniform(spec, MLPSizes)
        assert mlp is not None
        factor = spec.rope.get("partial_rotary_factor", 1.0)
        rope = written_rope(spec)
        for spelling in ("rope_parameters", "rope_scaling"):
            if rope[spelling] is not None:
                rope[spelling]["partial_rotary_factor"] = factor
        mixers = spec.layout[::2]
        return {
            "architectures": ["BambaForCausalLM"],
            "model_type": self.name,
            **written_fields(spec),
            "num_hidden_layers": len(mixers),
            "attn_layer_indices": [i for i, letter in enumerate(mixers) if letter == ATTENTION],
            **written_attention(spec),
            **written_mamba(spec),
            **rope,
            "partial_rotary_factor": factor,
            "intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "mlp_bias": mlp.bias,
            "rms_norm_eps": spec.norm_eps,
        }
