"""From what a user calls data to rows of tokens."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.files import sha256_of
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.load import check_tokens, load_model, load_tokenizer
from hybridize.data.documents import read_documents
from hybridize.data.packing import PackedDataset, pack, read_packed_dataset, save_packed_dataset
from hybridize.data.teacher_samples import sample_documents
from hybridize.errors import InputError
from hybridize.modeling.model import HybridForCausalLM

TEACHER = "teacher"
"""The source that is no file: the model writes the text itself."""

_DOCUMENTS_AT_ONCE = 256
_BESIDE_WEIGHTS = (".json", ".txt", ".model")
_VERSION = 1  # to be raised where the same arguments come to give other rows


def load_packed_dataset(
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
) -> PackedDataset:
    """Read or sample text, tokenize it, and pack it into rows.

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
    place = torch.device(device)
    path = None
    if cache is not None:
        settings: dict[str, Any] = {"length": length, "tokens": tokens, "seed": seed}
        if list(sources) == [TEACHER]:
            settings |= {"device": place.type, "dtype": str(dtype)}
        path = cache / f"packed-{_key(sources, directory, settings)}.safetensors"
        if path.exists():
            return read_packed_dataset(path, _vocabulary(directory))
    if list(sources) == [TEACHER]:
        if tokens is None:
            raise InputError(f"{option} {TEACHER}: say how many tokens to sample")
        documents = _sampled(directory, tokens, seed, place, dtype, option)
    else:
        documents = _tokenized(sources, directory, option)
    dataset = pack(documents, length, tokens)
    if not len(dataset):
        raise InputError(f"{option} {' '.join(sources)}: less text than one row of {length} tokens")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_packed_dataset(dataset, path)
    return dataset


def _vocabulary(directory: Path) -> int:
    with CheckpointReader(directory) as reader:
        return read_config(reader)[1].vocab_size


def _tokenized(sources: Sequence[str], directory: Path, option: str) -> Iterator[list[int]]:
    tokenizer = load_tokenizer(directory)
    vocabulary = _vocabulary(directory)
    for source in sources:
        texts = (text for text in read_documents(source, option) if text)
        while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
            for ids in tokenizer(batch, verbose=False).input_ids:
                if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
                    ids.append(tokenizer.eos_token_id)
                check_tokens(ids, vocabulary, directory)
                yield ids


def _sampled(
    directory: Path,
    tokens: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype | None,
    option: str,
) -> Iterator[list[int]]:
    model = load_model(directory, dtype=dtype, device=device)
    bos, eos = (_special_tokens(model, name) for name in ("bos_token_id", "eos_token_id"))
    if not bos + eos:
        raise InputError(
            f"{option} {TEACHER}: {directory} says neither bos_token_id nor eos_token_id, so there "
            "is nothing to begin with; give text instead"
        )
    if max(bos + eos) >= model.config.vocab_size:
        raise InputError(
            f"{directory}: documents begin or end with token {max(bos + eos)}, but the model's "
            f"vocabulary has {model.config.vocab_size}"
        )
    return sample_documents(model, bos=bos[0] if bos else None, eos=eos, tokens=tokens, seed=seed)


def _special_tokens(model: HybridForCausalLM, name: str) -> list[int]:
    """Return what generation or else the model itself is configured with: one, several, none."""
    for config in (model.generation_config, model.config):
        value = getattr(config, name, None)
        if value is not None:
            return list(value) if isinstance(value, list | tuple) else [value]
    return []


def _key(sources: Sequence[str], directory: Path, settings: dict[str, Any]) -> str:
    """Return a name for everything that decides the rows.

    Files count by their contents, wherever they lie; datasets of the hub by their names. So do all
    small files beside the model, since which of them make a tokenizer is transformers' affair, and
    where the model writes the text, its weights: to read and hash them takes much less time than
    to sample, and their sizes and dates would take retrained weights for the old ones.
    """
    decisive: list[Any] = [_VERSION, settings]
    for source in sources:
        path = Path(source)
        known = path.is_file()
        decisive.append([path.suffix.lower(), sha256_of(path)] if known else source)
    suffixes = _BESIDE_WEIGHTS + ((".safetensors",) if list(sources) == [TEACHER] else ())
    for path in sorted(directory.iterdir()):
        if path.suffix in suffixes and path.is_file():
            decisive.append([path.name, sha256_of(path)])
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
