"""What Llama and the Transformers that descend from it have in common on disk."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

from hybridize.checkpoints.formats.base import (
    DECODER_MIXERS,
    DECODER_NORMS,
    Fit,
    Format,
    Names,
    Raw,
    common_fields,
    require,
    require_default_scale,
    require_layers,
    require_no_multipliers,
    uniform,
    written_fields,
    written_rope,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MLPSizes


class TransformerFormat(Format):
    """Layers of attention with RoPE and a gated MLP; subclasses say what else is allowed."""

    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        norms=DECODER_NORMS,
        mixers=DECODER_MIXERS,
        blocks_per_layer=2,
    )
    ignored = ("*.rotary_emb.inv_freq",)

    def read(self, source: Any, **attention: Any) -> HybridConfig:
        """Build the model's configuration from transformers' own for the same checkpoint.

        Args:
            source: transformers' configuration.
            attention: fields of `AttentionSizes` in which the format differs from Llama.
        """
        head_dim = getattr(source, "head_dim", None)
        attention_sizes = AttentionSizes(
            num_heads=source.num_attention_heads,
            num_kv_heads=source.num_key_value_heads,
            head_dim=head_dim or source.hidden_size // source.num_attention_heads,
            **attention,
        )
        mlp = MLPSizes(
            intermediate_size=source.intermediate_size,
            activation=source.hidden_act,
            bias=getattr(source, "mlp_bias", False),
        )
        layer_types = getattr(source, "layer_types", None)
        blocks: list[BlockSizes] = []
        for layer in range(source.num_hidden_layers):
            full = layer_types is not None and layer_types[layer] == "full_attention"
            blocks += [replace(attention_sizes, sliding_window=None) if full else attention_sizes]
            blocks += [mlp]
        return HybridConfig.from_blocks(
            blocks,
            **common_fields(source),
            norm_eps=source.rms_norm_eps,
            rope_parameters=source.rope_parameters,
        )

    def require_plain(self, config: HybridConfig) -> None:
        """Check what all of these formats need: nothing that came after Llama."""
        require_layers(config)
        require("M" not in config.layout, "it has no Mamba-2 blocks")
        require(not config.residual_in_fp32, "its residual stream is not kept in float32")
        require_no_multipliers(config)
        mlp = uniform(config, MLPSizes)
        require(mlp is not None and mlp.gated, "its MLP is gated")
        for block in config.blocks:
            if isinstance(block, AttentionSizes):
                require(block.rope, "its attention has RoPE")
                require_default_scale(block)
        factor = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        require(factor == 1.0, "its RoPE turns whole heads")

    def fit(self, config: HybridConfig) -> Fit:
        """See `Format.fit`."""
        self.require_plain(config)
        self.require_attention(config)
        return Fit(config)

    @abstractmethod
    def require_attention(self, config: HybridConfig) -> None:
        """Check the attention blocks against what the subclass can hold.

        Raises:
            CannotHoldError: it has no place for them.
        """

    def write(self, config: HybridConfig, architecture: str) -> Raw:
        """Return what the config.json of all of these formats has."""
        attention = next(b for b in config.blocks if isinstance(b, AttentionSizes))
        mlp = uniform(config, MLPSizes)
        assert mlp is not None
        return {
            "architectures": [architecture],
            "model_type": self.name,
            **written_fields(config),
            "num_hidden_layers": len(config.layout) // 2,
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_kv_heads,
            "head_dim": attention.head_dim,
            "intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "rms_norm_eps": config.norm_eps,
            **written_rope(config),
        }


def sliding_fields(config: HybridConfig) -> Raw:
    """Return Qwen's fields for windows that some layers have and others have not."""
    blocks = [block for block in config.blocks if isinstance(block, AttentionSizes)]
    types = ["full" if block.sliding_window is None else "sliding" for block in blocks]
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": types.count("full"),
        "layer_types": [f"{kind}_attention" for kind in types],
    }
