"""Qwen3: a norm over every query and key head, and a head width of its own."""

from transformers import Qwen3Config

from hybridize.checkpoints.formats.base import Raw, require, same_apart_from_window, uniform
from hybridize.checkpoints.formats.transformer import (
    TransformerFormat,
    sliding_fields,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import MLPSizes


class Qwen3(TransformerFormat):
    """``model_type: qwen3``."""

    name = "qwen3"

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = Qwen3Config.from_dict(raw)
        return self.read(
            source,
            qkv_bias=source.attention_bias,
            out_bias=source.attention_bias,
            qk_norm=True,
            sliding_window=source.sliding_window,
        )

    def require_attention(self, config: HybridConfig) -> None:
        """See `TransformerFormat.require_attention`."""
        attention, mlp = same_apart_from_window(config), uniform(config, MLPSizes)
        assert mlp is not None
        require(attention.qk_norm, "its queries and keys have a norm")
        require(attention.qkv_bias == attention.out_bias, "it has all attention biases or none")
        require(not mlp.bias, "its MLP has no bias")

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        attention = same_apart_from_window(config)
        return (
            self.write(config, "Qwen3ForCausalLM")
            | {"attention_bias": attention.qkv_bias}
            | sliding_fields(config)
        )
