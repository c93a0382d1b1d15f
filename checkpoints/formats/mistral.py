"""Mistral: Llama with a sliding window and any head width."""

from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.checkpoints.formats.base import require, uniform
from hybridize.checkpoints.formats.fields import Fields, Raw, int_field
from hybridize.checkpoints.formats.transformer import TransformerFormat, transformer_fields
from hybridize.modeling.layers.sizes import AttentionSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec


class Mistral(TransformerFormat):
    """``model_type: mistral``."""

    name = "mistral"
    fields: ClassVar[Fields] = {
        **transformer_fields(
            vocab_size=32000, intermediate_size=14336, max_position_embeddings=4096 * 32,
            kv_heads=8, bos=1, eos=2,
        ),
        "num_key_value_heads": int_field(8),  # unlike in the other formats, it must not be null
        "sliding_window": int_field(4096, optional=True),
    }  # fmt: skip

    @override
    def read_attention(self, source: SimpleNamespace) -> dict[str, Any]:
        return {"sliding_window": source.sliding_window}

    @override
    def require_attention(self, spec: ModelSpec) -> None:
        attention, mlp = uniform(spec, AttentionSizes), uniform(spec, MLPSizes)
        assert attention is not None
        assert mlp is not None
        biases = attention.qkv_bias or attention.out_bias or mlp.bias
        require(not biases, "the format has no biases")
        require(not attention.qk_norm, "the format has no query/key norm")

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        window = {"sliding_window": spec.sliding_window}
        return self.written(spec, "MistralForCausalLM") | window
