"""SentencePiece's vocabulary from what Hugging Face keeps of it: scores from merges."""

from typing import Any


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Return whether a parsed tokenizer.json is a BPE of SentencePiece's, with bytes at need."""
    return bool(tokenizer["model"].get("byte_fallback"))


def adds_space(tokenizer: dict[str, Any]) -> bool:
    """Return whether a space goes before the text.

    Raises:
        ValueError: something else happens to the text, which llama.cpp would not do.
    """
    normalizer, splitter = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers") or [normalizer]
    found = replaces = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                found = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaces = True
            case _:
                raise ValueError(f"its normalizer has a step {step['type']}")
    match splitter:
        case None if replaces:
            return found
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
            return found or scheme != "never"
    raise ValueError("it splits text in a way that SentencePiece does not")


def piece_scores(tokenizer: dict[str, Any]) -> dict[str, float]:
    """Return the score of every token that is merged from others: the higher, the earlier.

    llama.cpp merges the neighbors whose piece has the best score, and a tokenizer.json has the
    order of the merges; the two agree where all ways to a piece come one after the other.

    Raises:
        ValueError: they do not.
    """
    vocabulary = tokenizer["model"]["vocab"]
    ways: dict[str, set[tuple[str, str]]] = {}
    last = None
    for merge in tokenizer["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        piece = left + right
        if piece != last and piece in ways:
            raise ValueError(f"the merges that lead to {piece!r} are not together")
        ways.setdefault(piece, set()).add((left, right))
        last = piece
    added = {token["content"] for token in tokenizer["added_tokens"]}
    for piece in vocabulary.keys() - added:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            mergeable = left in vocabulary and right in vocabulary
            if mergeable and (left, right) not in ways.get(piece, ()):
                raise ValueError(f"no merge makes {piece!r} of its tokens {left!r} and {right!r}")
    return {piece: -float(rank) for rank, piece in enumerate(ways)}
