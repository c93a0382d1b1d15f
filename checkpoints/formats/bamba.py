"""Bamba: the stock hybrid whose MLP may have biases; vLLM last read it in 0.23."""

from transformers import BambaConfig

from hybridize.checkpoints.formats.base import (
    DECODER_MIXERS,
    DECODER_NORMS,
    Fit,
    Format,
    Names,
    Raw,
    require,
    require_default_scale,
    require_no_multipliers,
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
from hybridize.modeling.layout import ATTENTION, MLP


class Bamba(Format):
    """``model_type: bamba``."""

    name = "bamba"
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.final_layernorm",
        norms={**DECODER_NORMS, MLP: "model.layers.{}.pre_ff_layernorm"},
        mixers={**DECODER_MIXERS, MLP: "model.layers.{}.feed_forward"},
        blocks_per_layer=2,
    )

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = BambaConfig.from_dict(raw)
        mlp = MLPSizes(
            intermediate_size=source.intermediate_size,
            activation=source.hidden_act,
            bias=source.mlp_bias,
        )
        blocks = read_blocks(source, source.layers_block_type, read_attention(source), mlp)
        return read_config(source, blocks, rope_parameters=source.rope_parameters)

    def fit(self, config: HybridConfig) -> Fit:
        """See `Format.fit`."""
        require_no_multipliers(config)
        fit = fit_stock(config)
        attention = uniform_attention(fit.config)
        require(attention.rope, "its attention has RoPE")
        require_default_scale(attention)
        return fit

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        mlp = uniform(config, MLPSizes)
        assert mlp is not None
        # Bamba's own default is one half, wherever RoPE is read from.
        factor = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        rope = written_rope(config)
        for spelling in ("rope_parameters", "rope_scaling"):
            if rope[spelling] is not None:
                rope[spelling]["partial_rotary_factor"] = factor
        mixers = config.layout[::2]
        return {
            "architectures": ["BambaForCausalLM"],
            "model_type": self.name,
            **written_fields(config),
            "num_hidden_layers": len(mixers),
            "attn_layer_indices": [i for i, letter in enumerate(mixers) if letter == ATTENTION],
            **written_attention(config),
            **written_mamba(config),
            **rope,
            "partial_rotary_factor": factor,
            "intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "mlp_bias": mlp.bias,
            "rms_norm_eps": config.norm_eps,
        }
