"""Mistral: Llama with a sliding window, and heads that need not fill the hidden size."""

from transformers import MistralConfig

from hybridize.checkpoints.formats.base import Raw, require, uniform
from hybridize.checkpoints.formats.transformer import TransformerFormat
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MLPSizes


class Mistral(TransformerFormat):
    """``model_type: mistral``."""

    name = "mistral"

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = MistralConfig.from_dict(raw)
        return self.read(source, sliding_window=source.sliding_window)

    def require_attention(self, config: HybridConfig) -> None:
        """See `TransformerFormat.require_attention`."""
        attention, mlp = uniform(config, AttentionSizes), uniform(config, MLPSizes)
        assert attention is not None
        assert mlp is not None
        biases = attention.qkv_bias or attention.out_bias or mlp.bias
        require(not biases, "it has no biases")
        require(not attention.qk_norm, "it has no query/key norm")

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        return self.write(config, "MistralForCausalLM") | {"sliding_window": config.sliding_window}
