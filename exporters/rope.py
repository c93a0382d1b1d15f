"""Which kinds of RoPE can be exported."""

from hybridize.modeling.config import HybridConfig

FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not depend on the length of the text.

Neither an ONNX graph nor a GGUF file can hold the others.
"""


def rope_type(config: HybridConfig) -> str:
    """Return a model's RoPE type in the words of transformers."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))
