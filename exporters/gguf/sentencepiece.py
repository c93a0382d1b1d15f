"""Recognizes SentencePiece vocabularies in tokenizer.json files, and recovers their scores.

tokenizer.json has the order of the merges instead of SentencePiece's scores.
"""

from typing import Any


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Return whether a parsed tokenizer.json is a SentencePiece BPE with byte fallback."""
    return bool(tokenizer["model"].get("byte_fallback"))


def adds_space(tokenizer: dict[str, Any]) -> bool:
    """Return whether a space is put before the text.

    Raises:
        ValueError: the tokenizer changes or splits the text in a way that llama.cpp does not.
    """
    normalizer, splitter = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    parts = [] if normalizer is None else normalizer.get("normalizers") or [normalizer]
    found = replaces = False
    for part in parts:
        match part:
            case {"type": "Prepend", "prepend": "▁"}:
                found = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaces = True
            case _:
                raise ValueError(f"llama.cpp has no normalizer {part['type']}")
    match splitter:
        case None if replaces:
            return found
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
            return found or scheme != "never"
    raise ValueError("it splits text in a way that SentencePiece does not")


def piece_scores(tokenizer: dict[str, Any]) -> dict[str, float]:
    """Return the score of every token that is merged from others. Earlier merges score higher.

    llama.cpp merges the neighbors whose piece has the highest score. That equals merging in the
    order of tokenizer.json under two conditions: all merges that produce the same piece are
    adjacent in that order, and every split of a piece into two tokens is a merge.

    Raises:
        ValueError: one of the conditions is not met.
    """
    vocabulary = tokenizer["model"]["vocab"]
    splits: dict[str, set[tuple[str, str]]] = {}
    last = None
    for merge in tokenizer["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        piece = left + right
        if piece != last and piece in splits:
            raise ValueError(f"the merges that produce {piece!r} are not adjacent")
        splits.setdefault(piece, set()).add((left, right))
        last = piece
    added = {token["content"] for token in tokenizer["added_tokens"]}
    for piece in vocabulary.keys() - added:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            mergeable = left in vocabulary and right in vocabulary
            if mergeable and (left, right) not in splits.get(piece, ()):
                raise ValueError(f"no merge combines {left!r} and {right!r} into {piece!r}")
    return {piece: -float(rank) for rank, piece in enumerate(splits)}
