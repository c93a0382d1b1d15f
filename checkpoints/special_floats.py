"""Reading and writing infinity and NaN in JSON, as transformers spells them.

JSON has neither. Transformers writes ``{"__float__": "Infinity"}``. Older Mamba-2 and Nemotron-H
checkpoints have such values in config.json.
"""

import math
from typing import Any

_TAG = "__float__"
_VALUES = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def encode_special_floats(value: Any) -> Any:
    """Return a copy of a JSON value in which infinity and NaN are objects."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: encode_special_floats(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [encode_special_floats(inner) for inner in value]
    return value


def decode_special_floats(value: Any) -> Any:
    """Return a copy of a JSON value in which the objects for infinity and NaN are floats."""
    if isinstance(value, dict):
        if set(value) == {_TAG} and isinstance(value[_TAG], str):
            return _VALUES.get(value[_TAG], value)
        return {key: decode_special_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [decode_special_floats(inner) for inner in value]
    return value
