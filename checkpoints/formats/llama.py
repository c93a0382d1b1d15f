"""Llama 1 to 3.x, and other models with Llama's architecture (SmolLM, Yi, …)."""

from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.checkpoints.formats.base import require, uniform
from hybridize.checkpoints.formats.fields import Fields, Raw, bool_field
from hybridize.checkpoints.formats.transformer import TransformerFormat, transformer_fields
from hybridize.modeling.layers.sizes import AttentionSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec


class Llama(TransformerFormat):
    """``model_type: llama``."""

    name = "llama"
    fields: ClassVar[Fields] = {
        **transformer_fields(
            vocab_size=32000, intermediate_size=11008, max_position_embeddings=2048,
            kv_heads=None, bos=1, eos=2,
        ),
        "attention_bias": bool_field(False),
        "mlp_bias": bool_field(False),
    }  # fmt: skip

    @override
    def read_attention(self, source: SimpleNamespace) -> dict[str, Any]:
        heads = source.num_attention_heads
        if heads > 0 and source.hidden_size % heads:
            raise ValueError(f"hidden_size {source.hidden_size} is not a multiple of {heads} heads")
        return {"qkv_bias": source.attention_bias, "out_bias": source.attention_bias}

    @override
    def require_attention(self, spec: ModelSpec) -> None:
        attention = uniform(spec, AttentionSizes)
        assert attention is not None
        all_or_none = attention.qkv_bias == attention.out_bias
        require(all_or_none, "the format has all attention biases or none")
        require(not attention.qk_norm, "the format has no query/key norm")
        require(attention.sliding_window is None, "the format has no sliding window")
        divides = spec.hidden_size % attention.num_heads == 0
        require(divides, "the number of heads must divide the hidden size")

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        attention, mlp = uniform(spec, AttentionSizes), uniform(spec, MLPSizes)
        assert attention is not None
        assert mlp is not None
        return self.written(spec, "LlamaForCausalLM") | {
            "attention_bias": attention.qkv_bias,
            "mlp_bias": mlp.bias,
        }
