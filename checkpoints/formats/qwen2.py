"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.checkpoints.formats.base import require, uniform, uniform_except_window
from hybridize.checkpoints.formats.fields import Fields, Raw
from hybridize.checkpoints.formats.qwen import (
    QWEN_FIELDS,
    QwenFormat,
    sliding_window,
    written_windows,
)
from hybridize.modeling.layers.sizes import MLPSizes
from hybridize.modeling.model_spec import ModelSpec


class Qwen2(QwenFormat):
    """``model_type: qwen2``."""

    name = "qwen2"
    fields: ClassVar[Fields] = QWEN_FIELDS

    @override
    def read_attention(self, source: SimpleNamespace) -> dict[str, Any]:
        return {"qkv_bias": True, "sliding_window": sliding_window(source)}

    @override
    def require_attention(self, spec: ModelSpec) -> None:
        attention, mlp = uniform_except_window(spec), uniform(spec, MLPSizes)
        assert mlp is not None
        qkv_only = attention.qkv_bias and not attention.out_bias
        require(qkv_only, "the format has biases on queries, keys and values only")
        require(not attention.qk_norm, "the format has no query/key norm")
        require(not mlp.bias, "the format has no MLP biases")

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        return self.written(spec, "Qwen2ForCausalLM") | written_windows(spec)
