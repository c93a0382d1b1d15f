"""Reads a checkpoint's tokenizer, and writes it to a GGUF file."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.errors import InputError
from hybridize.exporters.gguf.pre_tokenizers import pre_tokenizer_name
from hybridize.exporters.gguf.sentencepiece import adds_space, is_sentencepiece, piece_scores

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

NO_TOKENIZER = "none"
_WITHOUT_TOKENIZER = (
    f"`tokenizer={NO_TOKENIZER}` writes a file without a tokenizer, for token ids only"
)
_NEVER_MERGED = -1e9  # lower than the score of any piece that is merged


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp stores it.

    Attributes:
        model: ``"llama"`` (SentencePiece's BPE), ``"gpt2"`` (byte-level BPE) or ``"none"``.
        pre: llama.cpp's name of the pre-tokenizer, which splits text before merging.
        tokens: the token texts, one for each row of the embedding.
        types: the token types, as numbers of ``gguf.TokenType``.
        scores: the scores of SentencePiece tokens that are merged from others. Higher scores are
            merged first.
        merges: the merges of a byte-level BPE, in order.
        space_first: whether a space is put before the text.
        special: the special tokens, with the ones that are added to a text, and the chat template.
    """

    model: str
    pre: str
    tokens: tuple[str, ...] = ()
    types: tuple[int, ...] = ()
    scores: dict[str, float] | None = None
    merges: tuple[str, ...] | None = None
    space_first: bool = False
    special: "SpecialVocab | None" = None

    def write(self, writer: "GGUFWriter") -> None:
        """Write the keys of the tokenizer to a file."""
        writer.add_tokenizer_model(self.model)
        if self.special is None:
            return
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores([self.scores.get(t, _NEVER_MERGED) for t in self.tokens])
            writer.add_add_space_prefix(self.space_first)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        self.special.add_to_gguf(writer, quiet=True)


def read_vocabulary(directory: Path, choice: str, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Args:
        directory: the checkpoint.
        choice: ``"auto"``, ``"none"``, or llama.cpp's pre-tokenizer name for a byte-level BPE.
        size: the number of rows of the embedding.

    Raises:
        InputError: the checkpoint has no tokenizer, or llama.cpp would split text into other
            tokens.
    """
    if choice == NO_TOKENIZER:
        return Vocabulary(NO_TOKENIZER, NO_TOKENIZER)
    if not (directory / "tokenizer.json").is_file():
        raise InputError(f"{directory}: has no tokenizer.json; {_WITHOUT_TOKENIZER}")
    from hybridize.checkpoints.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
    parsed = json.loads(tokenizer.backend_tokenizer.to_str())
    if parsed["model"]["type"] != "BPE":
        raise _splits_differently(directory, f"it is a {parsed['model']['type']} model, not BPE")
    texts = {number: text for text, number in parsed["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in parsed["added_tokens"]}
    if max(texts) >= size:
        raise InputError(
            f"{directory / 'tokenizer.json'}: has the token id {max(texts)}, but the embedding has "
            f"{size} rows"
        )
    read = _sentencepiece if is_sentencepiece(parsed) else _byte_level
    return replace(
        read(directory, parsed, choice),
        tokens=tuple(texts.get(number, f"[PAD{number}]") for number in range(size)),
        types=_token_types(texts, parsed, size),
        special=_special_tokens(directory, tokenizer, size),
    )


def _sentencepiece(directory: Path, parsed: dict[str, Any], choice: str) -> Vocabulary:
    if choice != "auto":
        raise InputError(
            f"`tokenizer={choice}`: is for a byte-level BPE, but {directory / 'tokenizer.json'} "
            "is a SentencePiece tokenizer; leave the option out"
        )
    try:
        space_first, scores = adds_space(parsed), piece_scores(parsed)
    except ValueError as error:
        raise _splits_differently(directory, str(error)) from error
    missing = next((n for n in range(256) if _byte(n) not in parsed["model"]["vocab"]), None)
    if missing is not None:
        raise _splits_differently(directory, f"it has no token {_byte(missing)}")
    return Vocabulary("llama", "default", scores=scores, space_first=space_first)


def _byte_level(directory: Path, parsed: dict[str, Any], choice: str) -> Vocabulary:
    rule = pre_tokenizer_name(parsed) if choice == "auto" else choice
    if rule is None:
        raise InputError(
            f"{directory / 'tokenizer.json'}: no pre-tokenizer of llama.cpp is known to split text "
            f"like this one; if you know its name, give `tokenizer=NAME`; {_WITHOUT_TOKENIZER}"
        )
    merges = tuple(
        merge if isinstance(merge, str) else " ".join(merge) for merge in parsed["model"]["merges"]
    )
    if not merges:
        raise _splits_differently(directory, "it has no merges, and llama.cpp needs some")
    return Vocabulary("gpt2", rule, merges=merges)


def _splits_differently(directory: Path, reason: str) -> InputError:
    return InputError(
        f"{directory / 'tokenizer.json'}: llama.cpp would split text into other tokens: {reason}; "
        f"{_WITHOUT_TOKENIZER}"
    )


def _byte(number: int) -> str:
    return f"<0x{number:02X}>"


def _token_types(texts: dict[int, str], parsed: dict[str, Any], size: int) -> tuple[int, ...]:
    from gguf import TokenType

    special = {token["id"] for token in parsed["added_tokens"] if token["special"]}
    user = {token["id"] for token in parsed["added_tokens"]} - special
    in_bytes = {_byte(number) for number in range(256)} if is_sentencepiece(parsed) else set()

    def kind(number: int) -> TokenType:
        text = texts.get(number)
        if text is None:
            return TokenType.UNUSED
        if text == parsed["model"].get("unk_token"):
            return TokenType.UNKNOWN
        if number in special:
            return TokenType.CONTROL
        if number in user:
            return TokenType.USER_DEFINED
        return TokenType.BYTE if text in in_bytes else TokenType.NORMAL

    return tuple(int(kind(number)) for number in range(size))


def _special_tokens(directory: Path, tokenizer: Any, size: int) -> "SpecialVocab":
    from gguf import SpecialVocab

    # SpecialVocab warns about templates for pairs of texts, which GGUF files do not contain.
    log = logging.getLogger("gguf.vocab")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        special = SpecialVocab(directory, n_vocab=size)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{directory}: its special tokens cannot be read: {reason}") from error
    finally:
        log.setLevel(level)
    special.add_special_token = _added_tokens(directory, tokenizer)
    return special


def _added_tokens(directory: Path, tokenizer: Any) -> dict[str, bool]:
    """Return whether the tokenizer adds the BOS token and the EOS token to a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for first in ([], [bos]):
        for last in ([], [eos]):
            if full == [*first, *bare, *last]:
                return {"bos": bool(first), "eos": bool(last)}
    raise _splits_differently(
        directory, "it adds more to a text than one token before and one after"
    )
