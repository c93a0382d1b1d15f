"""How a tokenizer splits text before it merges, in llama.cpp's names.

llama.cpp has the rules of known tokenizers built in and a file only names one. The name follows
here from what the tokenizer says of itself, its patterns and not its vocabulary, so that a
tokenizer trained anew with a known rule has its name too.
"""

from typing import Any

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Published in the tokenizer.json of Llama 3; Qwen's differs in taking digits one by one."""
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = "GPT-2"  # what the ByteLevel step does by itself, and no pattern says
_DIGITS = "digits"

_RULES = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_QWEN2,), False): "qwen2",
}
"""What splits, and whether whole words in the vocabulary need no merges, to llama.cpp's name."""


def splitting_rule(tokenizer: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level BPE splits text; None if it has none.

    Args:
        tokenizer: the parsed tokenizer.json.
    """
    found = _steps(tokenizer.get("pre_tokenizer"))
    normalizes = (tokenizer.get("normalizer") or {"type": "NFC"})["type"] != "NFC"
    if found is None or normalizes:
        return None
    return _RULES.get((found, bool(tokenizer["model"].get("ignore_merges"))))


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """Return what splits, in order; None where one of the steps is another."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    found: list[str] = []
    for place, step in enumerate(steps):
        last = place == len(steps) - 1
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False} if last:
                found += [_GPT2] if step.get("use_regex", True) else []
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}:
                found.append(str(pattern))
            case {"type": "Digits", "individual_digits": True}:
                found.append(_DIGITS)
            case _:
                return None
    return tuple(found) if steps[-1]["type"] == "ByteLevel" else None
