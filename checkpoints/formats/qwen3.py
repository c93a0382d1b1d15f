"""Qwen3: a norm over every query and key head, and any head width."""

from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.checkpoints.formats.base import require, uniform, uniform_except_window
from hybridize.checkpoints.formats.fields import Fields, Raw, bool_field, int_field
from hybridize.checkpoints.formats.qwen import (
    QWEN_FIELDS,
    QwenFormat,
    sliding_window,
    written_windows,
)
from hybridize.modeling.layers.sizes import MLPSizes
from hybridize.modeling.model_spec import ModelSpec


class Qwen3(QwenFormat):
    """``model_type: qwen3``."""

    name = "qwen3"
    fields: ClassVar[Fields] = {
        **QWEN_FIELDS,
        "head_dim": int_field(128),
        "attention_bias": bool_field(False),
    }

    @override
    def read_attention(self, source: SimpleNamespace) -> dict[str, Any]:
        return {
            "qkv_bias": source.attention_bias,
            "out_bias": source.attention_bias,
            "qk_norm": True,
            "sliding_window": sliding_window(source),
        }

    @override
    def require_attention(self, spec: ModelSpec) -> None:
        attention, mlp = uniform_except_window(spec), uniform(spec, MLPSizes)
        assert mlp is not None
        require(attention.qk_norm, "the format always has query/key norms")
        all_or_none = attention.qkv_bias == attention.out_bias
        require(all_or_none, "the format has all attention biases or none")
        require(not mlp.bias, "the format has no MLP biases")

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        attention = uniform_except_window(spec)
        return (
            self.written(spec, "Qwen3ForCausalLM")
            | {"attention_bias": attention.qkv_bias}
            | written_windows(spec)
        )
