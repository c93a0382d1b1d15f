"""The base class of Qwen2 and Qwen3: Llama with sliding windows in some layers."""

from collections.abc import Sequence
from types import SimpleNamespace

from typing_extensions import override

from hybridize.checkpoints.formats.fields import Raw, bool_field, int_field
from hybridize.checkpoints.formats.transformer import TransformerFormat, transformer_fields
from hybridize.modeling.model_spec import ModelSpec, attention_blocks

QWEN_FIELDS = {
    **transformer_fields(
        vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768, kv_heads=32
    ),
    "use_sliding_window": bool_field(False),
    "sliding_window": int_field(4096, optional=True),
    "max_window_layers": int_field(28),
}
"""The fields that both formats have, with the same defaults."""


class QwenFormat(TransformerFormat):
    """A Transformer in which the first ``max_window_layers`` layers have no sliding window."""

    @override
    def layer_types(self, source: SimpleNamespace) -> Sequence[str]:
        if source.layer_types is not None:
            return super().layer_types(source)
        first = source.num_hidden_layers
        if sliding_window(source) is not None:
            first = source.max_window_layers
        return [
            "full_attention" if layer < first else "sliding_attention"
            for layer in range(source.num_hidden_layers)
        ]


def sliding_window(source: SimpleNamespace) -> int | None:
    """Return the sliding window, if it is in use."""
    window: int | None = source.sliding_window
    return window if source.use_sliding_window else None


def written_windows(spec: ModelSpec) -> Raw:
    """Return the fields of config.json that say which layers have a sliding window."""
    windows = [block.sliding_window for block in attention_blocks(spec.blocks)]
    types = ["full" if window is None else "sliding" for window in windows]
    return {
        "use_sliding_window": spec.sliding_window is not None,
        "sliding_window": spec.sliding_window,
        "max_window_layers": types.count("full"),
        "layer_types": [f"{kind}_attention" for kind in types],
    }
