"""The parameters of rotary position embeddings (RoPE): types, defaults and checks, without torch.

They are a dictionary with transformers' keys: ``rope_type``, ``rope_theta``, ``factor``, ….
`hybridize.modeling.layers.rope` gets the frequencies of every type from transformers. To add a type
that transformers computes, add one line to ``ROPE_TYPES``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridize.modeling.layers.sizes import is_number

_DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class RopeType:
    """A type of RoPE scaling.

    Attributes:
        required: the keys that transformers requires.
        optional: further keys that it reads.
        from_original: whether it needs the context length before scaling,
            ``original_max_position_embeddings``.
        length_dependent: whether the frequencies depend on the length of the sequence. A CUDA graph
            cannot replay such a model.
        exportable: whether ONNX graphs and GGUF files can express it.
    """

    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    from_original: bool = False
    length_dependent: bool = False
    exportable: bool = False


_LLAMA3_KEYS = frozenset(("factor", "low_freq_factor", "high_freq_factor"))
_LONGROPE_KEYS = frozenset(("short_factor", "long_factor"))
_LONGROPE_OPTIONAL = frozenset(("factor", "attention_factor"))
_YARN_OPTIONAL = frozenset(
    ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
)
_KEYS_OF_ALL_TYPES = frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor"))

ROPE_TYPES = {
    "default": RopeType(exportable=True),
    "linear": RopeType(frozenset(("factor",)), exportable=True),
    "dynamic": RopeType(frozenset(("factor",)), length_dependent=True),
    "yarn": RopeType(frozenset(("factor",)), _YARN_OPTIONAL, from_original=True, exportable=True),
    "longrope": RopeType(
        _LONGROPE_KEYS, _LONGROPE_OPTIONAL, from_original=True, length_dependent=True
    ),
    "llama3": RopeType(_LLAMA3_KEYS, from_original=True, exportable=True),
    "proportional": RopeType(optional=frozenset(("factor",))),
}
"""Every type by its name in ``rope_type``."""

_POSITIVE_KEYS = (
    "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor",
)  # fmt: skip


def standardize_rope(
    rope: Mapping[str, Any] | None, max_position_embeddings: int
) -> dict[str, Any]:
    """Return RoPE parameters with transformers' defaults filled in.

    Args:
        rope: the parameters as given.
        max_position_embeddings: the default of ``original_max_position_embeddings``.
    """
    result = dict(rope or {})
    result.setdefault("rope_theta", _DEFAULT_THETA)
    result.setdefault("rope_type", result.get("type", "default"))
    if uses_original_length(result):
        result.setdefault("original_max_position_embeddings", max_position_embeddings)
    return result


def uses_original_length(rope: Mapping[str, Any]) -> bool:
    """Return whether the type of RoPE needs the context length before scaling."""
    kind = rope.get("rope_type", rope.get("type"))
    known = ROPE_TYPES.get(kind) if isinstance(kind, str) else None
    return known is not None and known.from_original


def rope_keys(rope_type: str) -> frozenset[str]:
    """Return the keys of RoPE parameters that transformers reads for a type of `ROPE_TYPES`."""
    known = ROPE_TYPES[rope_type]
    original = {"original_max_position_embeddings"} if known.from_original else frozenset()
    return known.required | known.optional | original | _KEYS_OF_ALL_TYPES


def check_rope_parameters(rope: Mapping[str, Any]) -> None:
    """Check types and ranges; `hybridize.modeling.layers.rope.check_rope` checks the angles.

    Args:
        rope: parameters from `standardize_rope`.

    Raises:
        ValueError: they do not describe a RoPE.
    """
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(
            f"rope_parameters do not describe a RoPE: rope_type is {kind!r}; it must be one of "
            f"{', '.join(ROPE_TYPES)}"
        )
    required = ROPE_TYPES[kind].required
    if ROPE_TYPES[kind].from_original:
        required |= {"original_max_position_embeddings"}
    missing = sorted(required - set(rope))
    if missing:
        raise ValueError(
            f"rope_parameters do not describe a RoPE: rope_type {kind!r} needs {missing[0]}"
        )
    for key in _POSITIVE_KEYS:
        value: Any = rope.get(key)
        may_be_none = key not in required and key != "rope_theta"
        if value is None and may_be_none:
            continue
        if not is_number(value) or value <= 0:
            raise ValueError(
                f"rope_parameters do not describe a RoPE: {key} is {value!r}; it must be a "
                "positive number"
            )
