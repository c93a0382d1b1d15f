"""Damage to JSON documents and other text."""

import json
from random import Random
from typing import Any

DEEP: Any = []
for _ in range(900):  # json can read and write this depth, but other recursive code may fail
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 100, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, -(10**9),
    0.0, -0.5, 0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
    "", "x", "8", "silu", "llama", "mamba", "full_attention", "../x", "/etc/passwd", "\ud800", "\0",
    "a\nb\x1b[31m", "ü" * 5000, "float8_e4m3fn", "auto",
    [], {}, [[]], [None], [1, 2, 3], ["attention"] * 9, [0.0, float("inf")], {"": ""},
    {"x": {"y": []}}, {"__float__": "Infinity"}, {"__float__": "x"}, {"rope_type": "llama3"},
    {"rope_type": "none"}, DEEP,
)  # fmt: skip

KEYS = (
    "model_type", "head_dim", "sliding_window", "layer_types", "rope_parameters",
    "rope_scaling", "rope_theta", "quantization_config", "num_local_experts",
    "attn_layer_indices", "dtype", "torch_dtype", "tie_word_embeddings", "pad_token_id",
    "eos_token_id", "partial_rotary_factor", "attention_bias", "mlp_bias",
    "num_key_value_heads", "hidden_act", "auto_map", "time_step_limit",
    "max_position_embeddings", "overrides", "layout", "hybrid_override_pattern",
    "time_step_min", "transformers_version", "use_cache", "architectures", "id2label",
    "__metadata__", "chat_template", "max_window_layers", "use_sliding_window", "mamba_expand",
    "cache_implementation", "max_length",
)  # fmt: skip

Path = tuple[Any, ...]


def damage_value(rng: Random, document: Any) -> tuple[Any, str]:
    """Return a copy of a parsed document with one change, and a description of the change."""
    document = json.loads(json.dumps(document))
    entries = list(_entries(document))
    if not entries:
        value = rng.choice(VALUES)
        return value, f"document = {_shown(value)}"
    if len(entries) > 400:  # such as a vocabulary: take the first entries and a sample of the rest
        entries = entries[:200] + rng.sample(entries[200:], 200)
    container, key, path = rng.choice(entries)
    old = container[key]
    where = ".".join(map(str, path))
    match rng.randrange(10):
        case 0:
            del container[key]
            return document, f"del {where}"
        case 1 if isinstance(container, dict):
            new = rng.choice(KEYS)
            container[new] = rng.choice(VALUES)
            return document, f"{where}/../{new} = {_shown(container[new])}"
        case 2 if isinstance(old, list) and old:
            container[key] = rng.choice([old[:-1], old + old[-1:], old * 3, old[::-1]])
        case 2 | 3 if isinstance(old, int | float) and not isinstance(old, bool):
            container[key] = rng.choice(
                [old + 1, old - 1, -old, old * 2, old // 2, float(old), str(old), old * 10**6]
            )
        case 4:
            other, other_key, _ = rng.choice(entries)
            container[key], other[other_key] = other[other_key], old
            if _is_circular(document):
                container[key] = None
        case _:
            container[key] = rng.choice(VALUES)
    return document, f"{where} = {_shown(container[key])}"


def damage_text(rng: Random, text: bytes) -> tuple[bytes, str]:
    """Return a text with some bytes changed, and a description of the change."""
    offset = rng.randrange(len(text) + 1)
    match rng.randrange(8):
        case 0:
            return text[:offset], f"cut at byte {offset}"
        case 1:
            return text[:offset] + b"\xff\xfe" + text[offset:], f"invalid UTF-8 at byte {offset}"
        case 2:
            return b"\xef\xbb\xbf" + text, "a byte order mark"
        case 3:
            return text[:offset] + b"\0" + text[offset + 1 :], f"a zero byte at {offset}"
        case 4:
            return b"[" * 100_000, "100,000 brackets"
        case 5:
            whole = rng.choice([b"", b"null", b"[]", b"{}", b'"x"', b"1" * 5000, b"NaN", b"\n\n"])
            return whole, f"the whole text: {whole[:20]!r}"
        case 6:
            return text.decode("utf-8", "replace").encode("utf-16"), "in UTF-16"
    byte = rng.randrange(256)
    return text[:offset] + bytes([byte]) + text[offset + 1 :], f"byte {offset} is {byte}"


def dump(document: Any) -> bytes:
    """Serialize a document with Python's json, which accepts NaN and lone surrogates."""
    return json.dumps(document).encode()


def _entries(node: Any, path: Path = ()) -> Any:
    """Yield the container, the key and the path of every entry of a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items) if isinstance(node, dict | list) else ():
        yield node, key, (*path, key)
        if isinstance(value, dict | list) and len(path) < 12:
            yield from _entries(value, (*path, key))


def _is_circular(document: Any) -> bool:
    try:
        json.dumps(document)
    except (ValueError, RecursionError):
        return True
    return False


def _shown(value: Any) -> str:
    text = "a deep list" if value is DEEP else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
