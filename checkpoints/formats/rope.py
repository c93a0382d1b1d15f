"""Reading and writing RoPE parameters in a config.json.

Versions of transformers spell them differently. `hybridize.modeling.rope_parameters` checks the
parameters and lists the types of scaling.
"""

from typing import Any

from hybridize.checkpoints.formats.fields import Raw
from hybridize.console import console
from hybridize.modeling.model_spec import ModelSpec
from hybridize.modeling.rope_parameters import uses_original_length

_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


def read_rope(
    raw: Raw, *, partial_rotary_factor: float | None = None, whole_heads: bool = False
) -> dict[str, Any]:
    """Return transformers' RoPE dictionary from a config.json.

    The values in ``rope_parameters`` or ``rope_scaling`` have precedence over ``rope_theta`` and
    ``partial_rotary_factor`` beside them, but ``original_max_position_embeddings`` beside them has
    precedence, as in transformers' models. Defaults are left to `ModelSpec`.

    Args:
        raw: the content of config.json.
        partial_rotary_factor: the value of the architecture, which replaces the one beside
            ``rope_parameters``.
        whole_heads: the architecture's plain RoPE rotates all channels of a head in transformers,
            whatever ``partial_rotary_factor`` is.

    Raises:
        ValueError: a value is not a JSON object, or transformers cannot compute the parameters.
    """
    for name in ("rope_parameters", "rope_scaling"):
        if raw.get(name) is not None and not isinstance(raw[name], dict):
            if name == "rope_scaling" and not raw[name]:
                continue
            raise ValueError(f"{name} is {raw[name]!r}; it must be a JSON object")
    rope: dict[str, Any] = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    nested = sorted(key for key, value in rope.items() if isinstance(value, dict))
    if nested:
        raise ValueError(
            f"rope_parameters has values of its own for {nested[0]}; all attention layers must "
            "have the same RoPE"
        )
    if "rope_theta" in raw:
        rope.setdefault("rope_theta", raw["rope_theta"])
    factor = raw.get(_PARTIAL)
    factor = factor if partial_rotary_factor is None else partial_rotary_factor
    if factor is not None:
        rope.setdefault(_PARTIAL, factor)
    if whole_heads:
        _rotate_whole_heads(rope)
    if _ORIGINAL in raw and uses_original_length(rope):
        if _ORIGINAL in rope and rope[_ORIGINAL] != raw[_ORIGINAL]:
            console.note(
                f"{_ORIGINAL} is {rope[_ORIGINAL]!r} in the RoPE parameters and {raw[_ORIGINAL]!r} "
                "beside them; the latter is used, as in transformers"
            )
        rope[_ORIGINAL] = raw[_ORIGINAL]
    return rope


def _rotate_whole_heads(rope: dict[str, Any]) -> None:
    """Remove a ``partial_rotary_factor`` that transformers ignores; refuse one that it cannot use.

    Raises:
        ValueError: the type of scaling uses it, and then the architecture's code fails.
    """
    factor = rope.get(_PARTIAL, 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if factor == 1.0 or kind == "proportional":  # this type pads what it does not rotate
        return
    if kind != "default":
        raise ValueError(
            f"{_PARTIAL} is {factor!r} and rope_type is {kind!r}; the architecture rotates whole "
            f"heads, so remove {_PARTIAL}"
        )
    del rope[_PARTIAL]
    console.note(
        f"{_PARTIAL} is {factor!r}; it is ignored, and whole heads are rotated, as in "
        "transformers' code of the architecture; other programs may rotate parts of heads"
    )


def written_rope(model: ModelSpec) -> Raw:
    """Return RoPE in both spellings, because some readers know only the older one.

    Without ``rope_theta`` at the top level, SGLang, for example, assumes 10000.
    """
    rope = dict(model.rope)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
    }
