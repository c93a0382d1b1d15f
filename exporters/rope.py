"""Which kinds of RoPE can be exported."""

from typing import Any, Protocol

FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not depend on the length of the text.

Neither ONNX graphs nor GGUF files can express the others.
"""


class HasRope(Protocol):
    """A description of a model: a `ModelSpec` or a `HybridConfig`."""

    @property
    def rope_parameters(self) -> dict[str, Any] | None:
        """Transformers' RoPE dictionary."""


def rope_type(config: HasRope) -> str:
    """Return a model's RoPE type, by transformers' name."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))
