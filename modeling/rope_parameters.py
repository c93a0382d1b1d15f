"""The parameters of rotary position embeddings (RoPE): defaults and checks, without torch.

They are a dictionary with transformers' keys: ``rope_type``, ``rope_theta``, ``factor``, ….

To add a type of scaling that transformers computes, add its keys to ``_REQUIRED_KEYS``.
`hybridize.modeling.layers.rope` then gets the frequencies from transformers. If they depend on the
length, also add the type to ``LENGTH_DEPENDENT_TYPES``. Otherwise, the exporters can support it
(``FIXED_ROPE_TYPES`` there).
"""

from collections.abc import Mapping
from typing import Any

from hybridize.modeling.layers.sizes import is_number

_DEFAULT_THETA = 10000.0
_SCALED_FROM_ORIGINAL = ("llama3", "yarn", "longrope")
"""The types that need the context length before scaling."""

LENGTH_DEPENDENT_TYPES = ("dynamic", "longrope")
"""The types whose frequencies depend on the length of the sequence."""

_REQUIRED_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "longrope": {"short_factor", "long_factor", "original_max_position_embeddings"},
    "llama3": {
        "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    },
    "proportional": set(),
}  # fmt: skip
"""The keys that transformers requires, by type."""

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
    if result["rope_type"] in _SCALED_FROM_ORIGINAL:
        result.setdefault("original_max_position_embeddings", max_position_embeddings)
    return result


def check_rope_parameters(rope: Mapping[str, Any]) -> None:
    """Check types and ranges; `hybridize.modeling.layers.rope.check_rope` checks the angles.

    Args:
        rope: parameters from `standardize_rope`.

    Raises:
        ValueError: they do not describe a RoPE.
    """
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in _REQUIRED_KEYS:
        raise ValueError(
            f"rope_parameters do not describe a RoPE: rope_type is {kind!r}; it must be one of "
            f"{', '.join(_REQUIRED_KEYS)}"
        )
    missing = sorted(_REQUIRED_KEYS[kind] - set(rope))
    if missing:
        raise ValueError(
            f"rope_parameters do not describe a RoPE: rope_type {kind!r} needs {missing[0]}"
        )
    for key in _POSITIVE_KEYS:
        value: Any = rope.get(key)
        may_be_none = key not in _REQUIRED_KEYS[kind] and key != "rope_theta"
        if value is None and may_be_none:
            continue
        if not is_number(value) or value <= 0:
            raise ValueError(
                f"rope_parameters do not describe a RoPE: {key} is {value!r}; it must be a "
                "positive number"
            )
