"""Granite 4 hybrids without experts: the stock hybrid that the most engines open.

transformers, vLLM, SGLang and llama.cpp all read it, with RoPE, SwiGLU, biases on
queries, keys and values, and blocks in any order. What is written is what all of them
understand, not what ``save_pretrained`` would write.
"""

from transformers import GraniteMoeHybridConfig

from hybridize.checkpoints.formats.base import (
    DECODER_MIXERS,
    DECODER_NORMS,
    Fit,
    Format,
    Names,
    Raw,
    letters_to,
    require,
    uniform,
    written_fields,
    written_rope,
)
from hybridize.checkpoints.formats.stock_hybrid import (
    fit_stock,
    read_attention,
    read_blocks,
    read_config,
    uniform_attention,
    written_attention,
    written_mamba,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import MLPSizes
from hybridize.modeling.layout import ATTENTION, MAMBA, MLP


class GraniteMoeHybrid(Format):
    """``model_type: granitemoehybrid``."""

    name = "granitemoehybrid"
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        norms=DECODER_NORMS,
        mixers={**DECODER_MIXERS, MLP: "model.layers.{}.shared_mlp"},
        renamed={"down_proj": "output_linear"},
        stacked={"input_linear": ("gate_proj", "up_proj")},
        blocks_per_layer=2,
    )

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = GraniteMoeHybridConfig.from_dict(raw)
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
        mlp = MLPSizes(
            intermediate_size=source.shared_intermediate_size, activation=source.hidden_act
        )
        return read_config(
            source,
            read_blocks(source, source.layer_types or [], attention, mlp),
            rope_parameters=source.rope_parameters,
            embedding_multiplier=source.embedding_multiplier,
            residual_multiplier=source.residual_multiplier,
            logits_scaling=source.logits_scaling,
        )

    def fit(self, config: HybridConfig) -> Fit:
        """See `Format.fit`."""
        mlp = uniform(config, MLPSizes)
        require(mlp is None or not mlp.bias, "its MLP has no bias")
        factor = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        require(factor == 1.0, "its RoPE turns whole heads")
        return fit_stock(config)

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        attention, mlp = uniform_attention(config), uniform(config, MLPSizes)
        assert mlp is not None
        scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
        return {
            # llama.cpp's converter writes RoPE for a hybrid only where it reads Bamba's name.
            "architectures": ["GraniteMoeHybridForCausalLM", "BambaForCausalLM"],
            "model_type": self.name,
            **written_fields(config),
            "num_hidden_layers": len(config.layout) // 2,
            # The older spelling: llama.cpp compares with "attention", the others map both.
            "layer_types": letters_to({ATTENTION: "attention", MAMBA: "mamba"}, config.layout[::2]),
            **written_attention(config),
            **written_mamba(config),
            "position_embedding_type": "rope" if attention.rope else None,
            **written_rope(config),
            "attention_multiplier": scale,
            "embedding_multiplier": config.embedding_multiplier,
            "residual_multiplier": config.residual_multiplier,
            "logits_scaling": config.logits_scaling,
            "intermediate_size": mlp.intermediate_size,
            "shared_intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "rms_norm_eps": config.norm_eps,
        }
