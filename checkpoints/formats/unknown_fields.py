"""Refusing a config.json with a field that may change the model and that hybridize does not know.

Ignoring such a field would give wrong numbers without a word. So each field must be read by its
format, be known to have no influence, or have a value that changes nothing:

- A field that transformers' configuration class has must have the class's default.
- A field that transformers does not have either is ignored with a note. It is refused if its name
  is like those that change the numbers of models, because other programs may read it.

The tables of `hybridize.checkpoints.formats.known_fields` have the fields of the current version of
transformers. Only for other fields is transformers' class imported, which takes seconds.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.checkpoints.formats.base import Format
from hybridize.checkpoints.formats.known_fields import (
    NO_INFLUENCE,
    READ_BY_ALL,
    REQUIRED,
    SUSPICIOUS,
)
from hybridize.console import console
from hybridize.modeling.rope_parameters import ROPE_TYPES, rope_keys

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_NEUTRAL: tuple[Any, ...] = (None, False, "", [], {})
"""Values that switch off whatever a field stands for."""
_FACTORS = ("scal", "multiplier", "factor")
"""Parts of the names of fields that change nothing if they are 1; others are off if they are 0."""

_ROPE_DICTS = ("rope_scaling", "rope_parameters")
_NO_INFLUENCE_ON_ROPE = frozenset(("finetuned", "mrope_section"))
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class _Unknown:
    """A field that is not known: its name, and what is wrong if it must be refused."""

    name: str
    problem: str = ""


def check_fields(format_: Format, raw: dict[str, Any], path: Path) -> None:
    """Refuse a config.json with an unknown field that may change the model; note the others.

    Args:
        format_: the format that has read the file.
        raw: the content of config.json.
        path: config.json; the notes name it.

    Raises:
        ValueError: a field may change the model.
    """
    for unknown in _unknown_fields(format_, raw):
        if unknown.problem:
            raise ValueError(unknown.problem)
    ignored = ignored_fields(format_, raw)
    if ignored:
        console.note(f"{path}: ignored, as in transformers: {', '.join(ignored)}")
    code = _own_code(raw)
    if code and not format_.own:
        console.note(
            f"{path}: auto_map names the checkpoint's own code, {code}; it is not run, and the "
            f"model is read as transformers' {format_.name}"
        )


def ignored_fields(format_: Format, raw: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields that are ignored because neither hybridize nor transformers knows them."""
    return tuple(unknown.name for unknown in _unknown_fields(format_, raw) if not unknown.problem)


def _unknown_fields(format_: Format, raw: dict[str, Any]) -> Iterator[_Unknown]:
    known = {*format_.fields, *format_.also_read, *format_.no_influence, *READ_BY_ALL}
    required = {**REQUIRED, **format_.required}
    for name, value in raw.items():
        if name in required and name not in known:
            if not _is_one_of(value, required[name]):
                supported = json.dumps(required[name][0])
                yield _Unknown(
                    name,
                    f"{name} is {_shown(value)}, which is not supported for {format_.name}; only "
                    f"{supported} is",
                )
        elif name not in known and name not in NO_INFLUENCE:
            yield from _unlisted(format_.name, name, value)
    if any(name in format_.also_read for name in _ROPE_DICTS):
        rope: dict[str, Any] = next(
            (raw[name] for name in _ROPE_DICTS if isinstance(raw.get(name), dict)), {}
        )
        yield from _unknown_rope_keys(rope)


def _unlisted(model_type: str, name: str, value: Any) -> Iterator[_Unknown]:
    """Judge a field that no table has, by transformers' configuration class."""
    cls = _config_class(model_type)
    defaults = {field.name: field.default for field in fields(cls)}
    if name in defaults:
        if defaults[name] is MISSING or not _is_one_of(value, (defaults[name],)):
            yield _Unknown(name, _not_known(model_type, name, value))
    elif hasattr(cls, name) or name in cls.attribute_map:
        yield _Unknown(name, _not_known(model_type, name, value))
    elif _is_neutral(name, value):
        return
    elif any(part in name.lower() for part in SUSPICIOUS):
        yield _Unknown(
            name,
            f"{name} is {_shown(value)}; transformers' {model_type} ignores it, but a field of "
            "this name may change the model in other programs; remove it if the model works "
            "without it",
        )
    else:
        yield _Unknown(name)


def _unknown_rope_keys(rope: dict[str, Any]) -> Iterator[_Unknown]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    elsewhere = frozenset[str]().union(*(rope_keys(name) for name in ROPE_TYPES))
    for key, value in rope.items():
        if not isinstance(kind, str) or kind not in ROPE_TYPES or key in rope_keys(kind):
            continue  # `check_rope_parameters` refuses other types
        name = f"{key} of rope_type {kind!r}"
        if _is_neutral(key, value):
            continue
        if key in elsewhere | _NO_INFLUENCE_ON_ROPE:
            yield _Unknown(name)
        else:
            yield _Unknown(
                name,
                f"the RoPE parameters have {key} {_shown(value)}, which transformers ignores for "
                f"rope_type {kind!r}, but other programs may not; remove it if the model works "
                "without it",
            )


def _is_neutral(name: str, value: Any) -> bool:
    """Return whether a value switches off whatever a field of this name stands for."""
    factor = any(part in name.lower() for part in _FACTORS)
    return _is_one_of(value, (*_NEUTRAL, 1 if factor else 0))


def _not_known(model_type: str, name: str, value: Any) -> str:
    return (
        f"{name} is {_shown(value)}; transformers knows this field of {model_type}, and hybridize "
        "does not, so the result could be wrong; remove it if the model works without it"
    )


@cache
def _config_class(model_type: str) -> "type[PreTrainedConfig]":
    if model_type == "hybridize":
        from hybridize.modeling.config import HybridConfig

        return HybridConfig
    from transformers import CONFIG_MAPPING

    cls: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return cls


def _own_code(raw: dict[str, Any]) -> str:
    """Return the class that a checkpoint brings for its model; empty if it brings none."""
    auto_map = raw.get("auto_map")
    if not isinstance(auto_map, dict):
        return ""
    models = [name for name in auto_map if name == "AutoConfig" or name.startswith("AutoModel")]
    return "" if not models else str(auto_map[max(models)])


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Return whether a JSON value is among others; true and 1 differ, lists and tuples do not."""
    text = json.dumps(value)
    return any(text == json.dumps(other) for other in allowed) or (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and any(value == other for other in allowed if not isinstance(other, bool))
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
