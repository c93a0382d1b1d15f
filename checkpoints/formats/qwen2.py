"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.checkpoints.formats.base import require, same_apart_from_window, uniform
from hybridize.checkpoints.formats.fields import Fields, Raw
from hybridize.checkpoints.formats.transformer import (
    SLIDING_FIELDS,
    TransformerFormat,
    qwen_layer_types,
    qwen_window,
    transformer_fields,
    written_windows,
)
from hybridize.modeling.layers.sizes import MLPSizes
from hybridize.modeling.model_spec import ModelSpec


class Qwen2(TransformerFormat):
    """``model_type: qwen2``."""

    name = "qwen2"
    fields: ClassVar[Fields] = {
        **transformer_fields(
            vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768, kv_heads=32
        ),
        **SLIDING_FIELDS,
    }

    @override
    def read_attention(self, source: SimpleNamespace) -> dict[str, Any]:
        return {"qkv_bias": True, "sliding_window": qwen_window(source)}

    @override
    def layer_types(self, source: SimpleNamespace) -> Sequence[str]:
        return qwen_layer_types(source)

    @override
    def require_attention(self, config: ModelSpec) -> None:
        attention, mlp = same_apart_from_window(config), uniform(config, MLPSizes)
        assert mlp is not None
        qkv_only = attention.qkv_bias and not attention.out_bias
        require(qkv_only, "the format has biases on queries, keys and values only")
        require(not attention.qk_norm, "the format has no query/key norm")
        require(not mlp.bias, "the format has no MLP biases")

    @override
    def to_raw(self, config: ModelSpec) -> Raw:
        return self.written(config, "Qwen2ForCausalLM") | written_windows(config)
