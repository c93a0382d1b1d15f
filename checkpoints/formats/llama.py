"""Llama 1 to 3.x, and all that call themselves Llama (SmolLM, Yi, …)."""

from transformers import LlamaConfig

from hybridize.checkpoints.formats.base import Raw, require, uniform
from hybridize.checkpoints.formats.transformer import TransformerFormat
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MLPSizes


class Llama(TransformerFormat):
    """``model_type: llama``."""

    name = "llama"

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = LlamaConfig.from_dict(raw)
        return self.read(source, qkv_bias=source.attention_bias, out_bias=source.attention_bias)

    def require_attention(self, config: HybridConfig) -> None:
        """See `TransformerFormat.require_attention`."""
        attention = uniform(config, AttentionSizes)
        assert attention is not None
        require(attention.qkv_bias == attention.out_bias, "it has all attention biases or none")
        require(not attention.qk_norm, "it has no query/key norm")
        require(attention.sliding_window is None, "it has no sliding window")
        require(config.hidden_size % attention.num_heads == 0, "its heads divide the hidden size")

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        attention, mlp = uniform(config, AttentionSizes), uniform(config, MLPSizes)
        assert attention is not None
        assert mlp is not None
        return self.write(config, "LlamaForCausalLM") | {
            "attention_bias": attention.qkv_bias,
            "mlp_bias": mlp.bias,
        }
