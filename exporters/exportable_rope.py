"""The RoPE types that can be exported."""

from typing import Any, Protocol

from hybridize.modeling.rope_parameters import ROPE_TYPES

EXPORTABLE_ROPE_TYPES = tuple(name for name, kind in ROPE_TYPES.items() if kind.exportable)
"""RoPE types that ONNX graphs and GGUF files can express."""


class HasRope(Protocol):
    """A description of a model: a `ModelSpec` or a `HybridConfig`."""

    @property
    def rope_parameters(self) -> dict[str, Any] | None:
        """Transformers' RoPE dictionary."""


def rope_type(config: HasRope) -> str:
    """Return a model's RoPE type, by transformers' name."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))
