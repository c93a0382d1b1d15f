"""Finds the llama.cpp name of a byte-level BPE's pre-tokenizer, which splits text before merging.

llama.cpp has the rules of known tokenizers built in, and a GGUF file contains only the name of a
rule. The name is derived from the patterns in tokenizer.json, not from the vocabulary, so a newly
trained tokenizer with a known rule is also recognized.
"""

from typing import Any

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern in the tokenizer.json of Llama 3. Qwen 2's splits numbers into single digits."""
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = "GPT-2"  # the pattern that is built into the ByteLevel pre-tokenizer
_DIGITS = "digits"

_RULES = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_QWEN2,), False): "qwen2",
}
"""llama.cpp's names, by the patterns and by the field ``ignore_merges`` of tokenizer.json."""


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for the rule that splits text; None if no known rule is the same.

    Args:
        tokenizer: the parsed tokenizer.json of a byte-level BPE.
    """
    patterns = _patterns(tokenizer.get("pre_tokenizer"))
    normalizes = (tokenizer.get("normalizer") or {"type": "NFC"})["type"] != "NFC"
    if patterns is None or normalizes:
        return None
    return _RULES.get((patterns, bool(tokenizer["model"].get("ignore_merges"))))


def _patterns(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """Return the patterns that split text, in order; None if a step is unknown."""
    if pre_tokenizer is None:
        return None
    parts = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    found: list[str] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        match part:
            case {"type": "ByteLevel", "add_prefix_space": False} if last:
                found += [_GPT2] if part.get("use_regex", True) else []
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}:
                found.append(str(pattern))
            case {"type": "Digits", "individual_digits": True}:
                found.append(_DIGITS)
            case _:
                return None
    return tuple(found) if parts[-1]["type"] == "ByteLevel" else None
