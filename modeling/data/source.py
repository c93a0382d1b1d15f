"""From what a user calls data to rows of tokens."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hybridize.errors import InputError
from hybridize.modeling.checkpoint import CheckpointReader
from hybridize.modeling.checkpoint.files import sha256_of
from hybridize.modeling.data.documents import read_documents
from hybridize.modeling.data.sample import sample_documents
from hybridize.modeling.data.windows import Windows, open_windows, pack, save_windows
from hybridize.modeling.formats import read_config
from hybridize.modeling.hub import resolve
from hybridize.modeling.load import load_model, load_tokenizer

TEACHER = "teacher"
"""The source that is no file: the model writes the text itself."""

_DOCUMENTS_AT_ONCE = 256


def load_windows(
    sources: Sequence[str],
    *,
    model: str | Path,
    length: int,
    tokens: int | None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    cache: Path | None = None,
    option: str = "--data",
) -> Windows:
    """Read or sample text, tokenise it, and pack it into rows.

    Args:
        sources: files, datasets of the hub (see `read_documents`), or ``teacher`` alone.
        model: a directory or a hub id, whose tokenizer is used, and which ``teacher`` means.
        length: tokens per row.
        tokens: how many at most; ``teacher`` needs a number.
        seed: of sampling.
        device, dtype: where and in which dtype to sample.
        cache: a directory in which the rows are kept, and found again for the same arguments.
        option: where the sources were named, for messages.

    Raises:
        InputError: a source that cannot be read, or less text than a row.
    """
    directory = resolve(model)
    if TEACHER in sources and len(sources) > 1:
        raise InputError(f"{option} {TEACHER}: stands alone; leave out the other sources")
    if tokens is not None and tokens < length:
        raise InputError(f"{option}: {tokens} tokens are less than a row of {length}")
    path = None
    if cache is not None:
        key = _key(sources, directory, length=length, tokens=tokens, seed=seed, dtype=str(dtype))
        path = cache / f"windows-{key}.safetensors"
        if path.exists():
            return open_windows(path)
    if list(sources) == [TEACHER]:
        if tokens is None:
            raise InputError(f"{option} {TEACHER}: say how many tokens to sample")
        documents = _sampled(directory, tokens, seed, device, dtype, option)
    else:
        documents = _tokenised(sources, directory, option)
    windows = pack(documents, length, tokens)
    if not len(windows):
        raise InputError(f"{option} {' '.join(sources)}: less text than one row of {length} tokens")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_windows(windows, path)
    return windows


def _tokenised(sources: Sequence[str], directory: Path, option: str) -> Iterator[list[int]]:
    tokenizer = load_tokenizer(directory)
    with CheckpointReader(directory) as reader:
        vocabulary = read_config(reader)[1].vocab_size
    for source in sources:
        texts = read_documents(source, option)
        while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
            for ids in tokenizer(batch, verbose=False).input_ids:
                if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
                    ids.append(tokenizer.eos_token_id)
                if max(ids, default=0) >= vocabulary:
                    raise InputError(
                        f"{directory}: the tokenizer gives token {max(ids)}, but the model's "
                        f"vocabulary has {vocabulary}"
                    )
                yield ids


def _sampled(
    directory: Path,
    tokens: int,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype | None,
    option: str,
) -> Iterator[list[int]]:
    model = load_model(directory, dtype=dtype, device=device)
    bos, eos = model.generation_config.bos_token_id, model.generation_config.eos_token_id
    bos, eos = (token[0] if isinstance(token, list) else token for token in (bos, eos))
    if bos is None and eos is None:
        raise InputError(
            f"{option} {TEACHER}: {directory} says neither bos_token_id nor eos_token_id, so there "
            "is nothing to begin with; give text instead"
        )
    return sample_documents(model, bos=bos, eos=eos, tokens=tokens, seed=seed)


def _key(sources: Sequence[str], directory: Path, **settings: Any) -> str:
    """Return a name for everything that decides the rows.

    Files count by their contents, and so do the tokenizer and, where it writes the text, the
    model: hashing its weights takes much less time than sampling from them.
    """
    paths = [directory / "tokenizer.json", directory / "tokenizer_config.json"]
    if list(sources) == [TEACHER]:
        paths += [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    paths += [Path(source) for source in sources]
    contents = [sha256_of(path) if path.is_file() else None for path in paths]
    text = json.dumps([list(sources), contents, settings])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
