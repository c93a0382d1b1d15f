"""Granite 4 hybrids without experts, the stock hybrid that most engines open.

It has RoPE, SwiGLU, attention biases, and attention and Mamba-2 in any order. Transformers, vLLM,
SGLang and llama.cpp read it. They do not all read the config.json that ``save_pretrained`` writes,
so `to_raw` writes the spelling that all of them read.
"""

from typing_extensions import override

from hybridize.checkpoints.formats.base import (
    DECODER_MIXERS,
    DECODER_NORMS,
    Fit,
    Format,
    Names,
    letters_to,
    require,
    require_full_rotation,
    uniform,
    written_fields,
)
from hybridize.checkpoints.formats.fields import (
    Raw,
    common_fields,
    float_field,
    int_field,
    number_field,
    read_fields,
    str_field,
    str_list_field,
)
from hybridize.checkpoints.formats.known_fields import ROPE
from hybridize.checkpoints.formats.read_model import build_spec, layer_kinds
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
from hybridize.modeling.layers.kinds import ATTENTION, MAMBA, MLP
from hybridize.modeling.layers.sizes import MLPSizes
from hybridize.modeling.model_spec import ModelSpec

_FIELDS = {
    **common_fields(vocab_size=32000, max_position_embeddings=2048, bos=1, eos=2),
    **STOCK_FIELDS,
    "num_key_value_heads": int_field(None),
    "rms_norm_eps": float_field(1e-6),
    "embedding_multiplier": number_field(1.0, optional=True),
    "logits_scaling": number_field(1.0, optional=True),
    "residual_multiplier": number_field(1.0, optional=True),
    "attention_multiplier": number_field(1.0, optional=True),
    "num_local_experts": int_field(8, optional=True),
    "shared_intermediate_size": int_field(1024),
    "position_embedding_type": str_field(None),
    "layer_types": str_list_field(),
    "layers_block_type": str_list_field(),
}


class GraniteMoeHybrid(Format):
    """``model_type: granitemoehybrid``."""

    name = "granitemoehybrid"
    fields = _FIELDS
    also_read = ROPE
    no_influence = (
        *STOCK_NO_INFLUENCE, "intermediate_size", "num_experts_per_tok", "output_router_logits",
        "router_aux_loss_coef", "init_method",
    )  # fmt: skip
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        norms=DECODER_NORMS,
        mixers={**DECODER_MIXERS, MLP: "model.layers.{}.shared_mlp"},
        renamed={"down_proj": "output_linear"},
        stacked={"input_linear": ("gate_proj", "up_proj")},
        blocks_per_layer=2,
    )

    @override
    def to_spec(self, raw: Raw) -> ModelSpec:
        source = read_fields(raw, _FIELDS)
        if source.num_local_experts:
            raise ValueError(
                f"num_local_experts is {source.num_local_experts}; mixtures of experts are not "
                "supported, only dense models"
            )
        attention = read_attention(
            source,
            scale=source.attention_multiplier,
            rope=source.position_embedding_type == "rope",
        )
        mlp = MLPSizes(source.shared_intermediate_size, activation=source.hidden_act)
        layers = source.num_hidden_layers
        if "layers_block_type" in raw and source.layers_block_type is None:
            raise ValueError("layers_block_type is null; remove it")
        given = (source.layers_block_type, source.layer_types, [LINEAR] * layers)
        kinds = next(kinds for kinds in given if kinds is not None)
        kinds = layer_kinds(kinds, (FULL, LINEAR), layers)
        return build_spec(
            raw,
            source,
            read_blocks(source, kinds, attention, mlp),
            norm_eps=source.rms_norm_eps,
            rope_parameters=read_rope(raw, whole_heads=True),
        )

    @override
    def fit(self, spec: ModelSpec) -> Fit:
        mlp = uniform(spec, MLPSizes)
        require(mlp is None or not mlp.bias, "the format has no MLP biases")
        require_full_rotation(spec)
        return fit_stock(spec)

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        attention, mlp = uniform_attention(spec), uniform(spec, MLPSizes)
        assert mlp is not None
        scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
        return {
            # llama.cpp's converter writes RoPE for a hybrid only if it finds Bamba's name.
            "architectures": ["GraniteMoeHybridForCausalLM", "BambaForCausalLM"],
            "model_type": self.name,
            **written_fields(spec),
            "num_hidden_layers": len(spec.layout) // 2,
            # The older names: llama.cpp knows only these, and the other engines know both.
            "layer_types": letters_to({ATTENTION: "attention", MAMBA: "mamba"}, spec.layout[::2]),
            **written_attention(spec),
            **written_mamba(spec),
            "position_embedding_type": "rope" if attention.rope else None,
            **written_rope(spec),
            "attention_multiplier": scale,
            "embedding_multiplier": spec.embedding_multiplier,
            "residual_multiplier": spec.residual_multiplier,
            "logits_scaling": spec.logits_scaling,
            "intermediate_size": mlp.intermediate_size,
            "shared_intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "rms_norm_eps": spec.norm_eps,
        }
