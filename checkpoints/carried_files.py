"""Which files of a checkpoint go along to every result that is made from it.

These are the files from which transformers loads a tokenizer, a chat template or a processor, the
generation settings, and the legal texts that a redistributor must pass on. Code, weights and the
model card, which describes another model, never do. The list is written out, because transformers
takes seconds to import; a test compares it with all of its tokenizer classes.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab*.json", "vocab*.txt", "*_vocab.json", "merges*.txt",
    # SentencePiece, tiktoken and Mistral, also with a version, such as tokenizer.model.v3
    "*.model", "*.model.v[0-9]*", "*.spm", "*.tiktoken", "*tekken*.json",
    # of single tokenizer classes
    "bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "normalizer.json",
    "prophetnet.tokenizer", "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
"""Glob patterns of the files of tokenizers."""

_OTHER_FILES = (
    "chat_template*.jinja", "chat_template*.json", "additional_chat_templates/*.jinja",
    "SYSTEM_PROMPT*.txt", "generation_config.json", "*processor_config.json",
    "audio_tokenizer_config.json",
)  # fmt: skip

_LEGAL = re.compile(
    r"(licen[cs]es/[^/]+|[^/]*(licen[cs]e|notice|copying|copyright|(use|usage)[-_ ]policy)[^/]*)",
    re.IGNORECASE,
)
_FOLDERS = ("additional_chat_templates", "LICENSES", "licenses")
_CODE_OR_WEIGHTS = (
    ".py", ".pyc", ".sh", ".so", ".js", ".ipynb", ".safetensors", ".bin", ".pt", ".pth", ".ckpt",
    ".pkl", ".pickle", ".msgpack", ".h5", ".ot", ".gguf", ".ggml", ".onnx", ".npz", ".index.json",
)  # fmt: skip
_LIKE_A_TOKENIZER = re.compile(
    r"token(iz|is)|vocab|merges|tekken|tiktoken|sentencepiece|spiece|bpe|chat_?template|processor",
    re.IGNORECASE,
)


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file, by its name, may be a part of a tokenizer."""
    return _may_be_carried(name) and _matches(name, TOKENIZER_FILES)


def is_carried(name: str) -> bool:
    """Return whether a file goes along to results.

    Args:
        name: its path in the checkpoint, with slashes.
    """
    return _may_be_carried(name) and (
        _matches(name, TOKENIZER_FILES + _OTHER_FILES) or _LEGAL.fullmatch(name) is not None
    )


def copied_files(source: Path) -> list[Path]:
    """Return the files of ``source`` that go along to its results, sorted."""
    names = _names_below(source)
    return sorted(source / name for name in names if is_carried(name))


def left_behind(source: Path) -> list[str]:
    """Return the names of the files that look like parts of a tokenizer but do not go along."""
    return sorted(
        name
        for name in _names_below(source)
        if _LIKE_A_TOKENIZER.search(name) and not is_carried(name) and not _is_weights(name)
    )


def _names_below(source: Path) -> Iterable[str]:
    found = [source.glob("*"), *(source.glob(f"{folder}/*") for folder in _FOLDERS)]
    return {
        path.relative_to(source).as_posix() for paths in found for path in paths if path.is_file()
    }


def _may_be_carried(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and not name.lower().endswith(_CODE_OR_WEIGHTS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    # fnmatch lets * match slashes, so folders are compared first.
    return any(
        name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns
    )


def _is_weights(name: str) -> bool:
    return name.lower().endswith(_CODE_OR_WEIGHTS) and not name.endswith(".py")
