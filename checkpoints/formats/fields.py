"""The fields of a config.json: their types and defaults, declared as tables.

A table mirrors the fields of transformers' configuration class for the same ``model_type``, with
its types and defaults, so that a config.json is understood without importing transformers.
`tests/checkpoints/test_config_fields.py` compares the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

Raw = dict[str, Any]
"""A parsed config.json."""


@dataclass(frozen=True)
class Field:
    """One field of a config.json.

    Attributes:
        default: its value if config.json does not have it.
        check: whether a value has the right type.
        expected: the type that a value must have, in words, for error messages.
        optional: whether the value may be null.
    """

    default: Any
    check: Callable[[Any], bool]
    expected: str
    optional: bool = False


Fields = Mapping[str, Field]


def int_field(default: int | None, *, optional: bool = False) -> Field:
    """Return a field with a whole number."""
    return Field(default, _is_int, "a whole number", optional or default is None)


def float_field(default: float) -> Field:
    """Return a field with a JSON float, such as 1.0. Transformers does not accept 1 here."""
    return Field(default, lambda value: isinstance(value, float), "a number like 1.0")


def number_field(default: float, *, optional: bool = False) -> Field:
    """Return a field with any number."""
    return Field(default, _is_number, "a number", optional)


def bool_field(default: bool, *, optional: bool = False) -> Field:
    """Return a field with true or false."""
    return Field(default, lambda value: isinstance(value, bool), "true or false", optional)


def str_field(default: str | None, *, optional: bool = False) -> Field:
    """Return a field with a string."""
    return Field(default, _is_str, "a string", optional or default is None)


def int_or_auto_field() -> Field:
    """Return a field with a whole number or ``"auto"``, which is the default."""
    return Field("auto", lambda value: value == "auto" or _is_int(value), "a whole number or auto")


def str_list_field() -> Field:
    """Return an optional field with a list of strings."""
    return Field(None, partial(_is_list, check=_is_str), "a list of strings", optional=True)


def int_list_field() -> Field:
    """Return an optional field with a list of whole numbers."""
    check = partial(_is_list, check=_is_int)
    return Field(None, check, "a list of whole numbers", optional=True)


def dt_limits_field(*, optional: bool = False) -> Field:
    """Return a field with a lower and an upper limit of Δt; by default 0 and infinity."""
    return Field((0.0, float("inf")), _is_pair, "a list of two numbers like 1.0", optional)


def token_ids_field(default: int | None) -> Field:
    """Return an optional field with a token id or a list of them."""
    return Field(default, _is_tokens, "a token id or a list of token ids", optional=True)


def object_field() -> Field:
    """Return an optional field with a JSON object."""
    return Field(None, lambda value: isinstance(value, dict), "a JSON object", optional=True)


def read_fields(raw: Raw, fields: Fields) -> SimpleNamespace:
    """Return the values of a config.json's fields, as attributes.

    Fields that are not in the table are ignored.

    Raises:
        ValueError: a value has the wrong type.
    """
    values = {}
    for name, field in fields.items():
        value = raw.get(name, field.default)
        if not (value is None and field.optional) and not field.check(value):
            raise ValueError(f"{name} is {value!r}; it must be {field.expected}")
        values[name] = value
    return SimpleNamespace(**values)


def common_fields(
    *, vocab_size: int, max_position_embeddings: int, bos: int | None, eos: int | None,
    pad: int | None = None, initializer_range: float = 0.02,
) -> dict[str, Field]:  # fmt: skip
    """Return the fields that all formats have, with the defaults of the given format."""
    return {
        "vocab_size": int_field(vocab_size),
        "hidden_size": int_field(4096),
        "max_position_embeddings": int_field(max_position_embeddings),
        "tie_word_embeddings": bool_field(False),
        "initializer_range": float_field(initializer_range),
        "use_cache": bool_field(True),
        "pad_token_id": int_field(pad, optional=True),
        "bos_token_id": int_field(bos, optional=True),
        "eos_token_id": token_ids_field(eos),
    }


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(check, value))


def _is_tokens(value: object) -> bool:
    return _is_int(value) or _is_list(value, _is_int)


def _is_pair(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(limit, float) for limit in value)
