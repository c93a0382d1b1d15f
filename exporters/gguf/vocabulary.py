"""A checkpoint's tokenizer in the keys of a GGUF file."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.errors import InputError
from hybridize.exporters.gguf.pieces import adds_space, is_sentencepiece, piece_scores
from hybridize.exporters.gguf.splitting import splitting_rule

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

NO_TOKENIZER = "none"
_UNREACHED = -1e9  # no two tokens are merged to one with this score before any others


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp holds it.

    Attributes:
        model: ``"llama"`` (SentencePiece's BPE), ``"gpt2"`` (byte-level BPE) or ``"none"``.
        pre: how text is split before merging, in llama.cpp's names.
        tokens: their texts, one for each row of the embedding.
        types: what they are, as ``gguf.TokenType`` numbers them.
        scores: of SentencePiece's tokens that are merged from others, the best merged first.
        merges: of a byte-level BPE.
        space_first: whether a space goes before the text.
        special: special tokens, which of them go around a text, and the chat template.
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
        """Write it to a file in the making."""
        writer.add_tokenizer_model(self.model)
        if self.special is None:
            return
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores([self.scores.get(t, _UNREACHED) for t in self.tokens])
            writer.add_add_space_prefix(self.space_first)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        self.special.add_to_gguf(writer, quiet=True)


def read_vocabulary(directory: Path, choice: str, size: int) -> Vocabulary:
    """Understand the tokenizer beside a checkpoint.

    Args:
        directory: the checkpoint.
        choice: ``"auto"``, ``"none"``, or llama.cpp's name for how a byte-level BPE splits text.
        size: rows of the embedding.

    Raises:
        InputError: there is none, or llama.cpp would cut text into other tokens.
    """
    if choice == NO_TOKENIZER:
        return Vocabulary(NO_TOKENIZER, NO_TOKENIZER)
    if not (directory / "tokenizer.json").is_file():
        raise InputError(
            f"{directory}: has no tokenizer.json; --tokenizer none writes a file that takes and "
            "gives token ids alone"
        )
    from hybridize.checkpoints.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE":
        raise _unfit(directory, f"it is a {spec['model']['type']} model, and not BPE")
    texts = {number: text for text, number in spec["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in spec["added_tokens"]}
    if max(texts) >= size:
        raise InputError(
            f"{directory / 'tokenizer.json'}: has a token {max(texts)}, and the embedding "
            f"{size} rows"
        )
    fit = _sentencepiece if is_sentencepiece(spec) else _byte_level
    return replace(
        fit(directory, spec, choice),
        tokens=tuple(texts.get(number, f"[PAD{number}]") for number in range(size)),
        types=_types(texts, spec, size),
        special=_special(directory, tokenizer, size),
    )


def _sentencepiece(directory: Path, spec: dict[str, Any], choice: str) -> Vocabulary:
    if choice != "auto":
        raise InputError(
            f"--tokenizer {choice}: names how a byte-level BPE splits text, and "
            f"{directory / 'tokenizer.json'} is SentencePiece's; leave it out"
        )
    try:
        space_first, scores = adds_space(spec), piece_scores(spec)
    except ValueError as error:
        raise _unfit(directory, str(error)) from error
    missing = next((n for n in range(256) if _byte(n) not in spec["model"]["vocab"]), None)
    if missing is not None:
        raise _unfit(directory, f"it has no token {_byte(missing)}")
    return Vocabulary("llama", "default", scores=scores, space_first=space_first)


def _byte_level(directory: Path, spec: dict[str, Any], choice: str) -> Vocabulary:
    rule = splitting_rule(spec) if choice == "auto" else choice
    if rule is None:
        raise InputError(
            f"{directory / 'tokenizer.json'}: splits text by a rule that llama.cpp may not have; "
            "where you know its name there, give it with --tokenizer NAME, and without a "
            "tokenizer write the file with --tokenizer none"
        )
    merges = tuple(
        merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]
    )
    if not merges:
        raise _unfit(directory, "it has no merges, without which llama.cpp opens no file")
    return Vocabulary("gpt2", rule, merges=merges)


def _unfit(directory: Path, reason: str) -> InputError:
    return InputError(
        f"{directory / 'tokenizer.json'}: llama.cpp would cut text into other tokens: {reason}; "
        "--tokenizer none writes a file that takes and gives token ids alone"
    )


def _byte(number: int) -> str:
    return f"<0x{number:02X}>"


def _types(texts: dict[int, str], spec: dict[str, Any], size: int) -> tuple[int, ...]:
    from gguf import TokenType

    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    user = {token["id"] for token in spec["added_tokens"]} - special
    in_bytes = {_byte(number) for number in range(256)} if is_sentencepiece(spec) else set()

    def kind(number: int) -> TokenType:
        text = texts.get(number)
        if text is None:
            return TokenType.UNUSED
        if text == spec["model"].get("unk_token"):
            return TokenType.UNKNOWN
        if number in special:
            return TokenType.CONTROL
        if number in user:
            return TokenType.USER_DEFINED
        return TokenType.BYTE if text in in_bytes else TokenType.NORMAL

    return tuple(int(kind(number)) for number in range(size))


def _special(directory: Path, tokenizer: Any, size: int) -> "SpecialVocab":
    from gguf import SpecialVocab

    # It remarks on how templates join two texts, of which no file says anything.
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
    special.add_special_token = _around(directory, tokenizer)
    return special


def _around(directory: Path, tokenizer: Any) -> dict[str, bool]:
    """Return whether the beginning's and the end's token go around a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for first in ([], [bos]):
        for last in ([], [eos]):
            if full == [*first, *bare, *last]:
                return {"bos": bool(first), "eos": bool(last)}
    raise _unfit(directory, "it puts more around a text than one token before and one after")
