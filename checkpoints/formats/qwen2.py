"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from transformers import Qwen2Config

from hybridize.checkpoints.formats.base import Raw, require, same_apart_from_window, uniform
from hybridize.checkpoints.formats.transformer import (
    TransformerFormat,
    sliding_fields,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import MLPSizes


class Qwen2(TransformerFormat):
    """``model_type: qwen2``."""

    name = "qwen2"

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = Qwen2Config.from_dict(raw)
        return self.read(source, qkv_bias=True, sliding_window=source.sliding_window)

    def require_attention(self, config: HybridConfig) -> None:
        """See `TransformerFormat.require_attention`."""
        attention, mlp = same_apart_from_window(config), uniform(config, MLPSizes)
        assert mlp is not None
        require(attention.qkv_bias and not attention.out_bias, "it has biases on q, k and v only")
        require(not attention.qk_norm, "it has no query/key norm")
        require(not mlp.bias, "its MLP has no bias")

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        return self.write(config, "Qwen2ForCausalLM") | sliding_fields(config)
