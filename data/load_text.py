"""Load a packed dataset from the sources that a user names: files, datasets, or the teacher."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.carried_files import is_tokenizer_file
from hybridize.checkpoints.files import sha256_of
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.load import check_tokens, load_model, load_tokenizer
from hybridize.console import console
from hybridize.data.documents import read_documents
from hybridize.data.packing import PackedDataset, pack, read_packed_dataset, save_packed_dataset
from hybridize.data.teacher_samples import sample_documents
from hybridize.errors import InputError
from hybridize.modeling.model import HybridForCausalLM

TEACHER = "teacher"
"""The name of the source for which the model generates the text."""

_DOCUMENTS_PER_BATCH = 256
_SMALL_SUFFIXES = (".json", ".txt", ".model")
_VERSION = 1  # increase it when the same arguments give another dataset


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
    option: str = "data",
) -> PackedDataset:
    """Read or sample text, tokenize it, and pack it into sequences.

    Args:
        sources: files or datasets on the hub (see `read_documents`), or ``teacher`` alone.
        model: a directory or a hub id. Its tokenizer is used; ``teacher`` samples from it.
        length: tokens per sequence.
        tokens: maximum number of tokens; ``teacher`` needs a number.
        seed: random seed for sampling.
        device, dtype: where to sample, and the dtype to compute in.
        cache: a directory that keeps the dataset. A later call with the same arguments reads it.
        option: keyword of the option that named the sources, for error messages.

    Raises:
        InputError: a source cannot be read, or has less text than one sequence.
    """
    directory = resolve(model)
    if TEACHER in sources and len(sources) > 1:
        raise InputError(
            f"`{option}={TEACHER}` cannot be combined with other sources; leave them out"
        )
    if tokens is not None and tokens < length:
        raise InputError(f"`{option}`: {tokens} tokens are less than one sequence of {length}")
    device = torch.device(device)
    path = None
    if cache is not None:
        settings: dict[str, Any] = {"length": length, "tokens": tokens, "seed": seed}
        if list(sources) == [TEACHER]:
            settings |= {"device": device.type, "dtype": str(dtype)}
        path = cache / f"packed-{_key(sources, directory, settings)}.safetensors"
        if path.exists():
            return read_packed_dataset(path, _vocab_size(directory))
    if list(sources) == [TEACHER]:
        if tokens is None:
            raise InputError(f"`{option}={TEACHER}`: give the number of tokens to sample")
        documents = _sampled(directory, tokens, seed, device, dtype, option)
    else:
        documents = _with_progress(_tokenized(sources, directory, option), tokens)
    dataset = pack(documents, length, tokens)
    if not len(dataset):
        names = ", ".join(sources)
        raise InputError(f"`{option}={names}`: less text than one sequence of {length} tokens")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_packed_dataset(dataset, path)
    return dataset


def _vocab_size(directory: Path) -> int:
    with CheckpointReader(directory) as reader:
        return read_config(reader)[1].vocab_size


def _with_progress(documents: Iterator[list[int]], tokens: int | None) -> Iterator[list[int]]:
    with console.progress("tokenizing", tokens, "tokens") as progress:
        for ids in documents:
            progress.advance(len(ids))
            yield ids


def _tokenized(sources: Sequence[str], directory: Path, option: str) -> Iterator[list[int]]:
    tokenizer = load_tokenizer(directory)
    vocab_size = _vocab_size(directory)
    for source in sources:
        texts = (text for text in read_documents(source, option) if text)
        while batch := list(islice(texts, _DOCUMENTS_PER_BATCH)):
            for ids in tokenizer(batch, verbose=False).input_ids:
                if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
                    ids.append(tokenizer.eos_token_id)
                check_tokens(ids, vocab_size, directory)
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
            f"`{option}={TEACHER}`: {directory} has neither a bos_token_id nor an eos_token_id to "
            "start a document with; give text instead"
        )
    if max(bos + eos) >= model.config.vocab_size:
        raise InputError(
            f"{directory}: its bos_token_id or eos_token_id is {max(bos + eos)}, but its "
            f"vocabulary has {model.config.vocab_size} tokens"
        )
    return sample_documents(model, bos=bos[0] if bos else None, eos=eos, tokens=tokens, seed=seed)


def _special_tokens(model: HybridForCausalLM, name: str) -> list[int]:
    """Return token ids from the generation config, else from the model config.

    The list is empty if neither has an entry ``name``.
    """
    for config in (model.generation_config, model.config):
        value = getattr(config, name, None)
        if value is not None:
            return list(value) if isinstance(value, list | tuple) else [value]
    return []


def _key(sources: Sequence[str], directory: Path, settings: dict[str, Any]) -> str:
    """Return a hash of everything that the dataset depends on.

    It covers the contents of files and the names of datasets on the hub. It also covers all small
    files of the model's directory, because only transformers knows which of them belong to the
    tokenizer. If the model generates the text, it covers the weights too: size and date cannot
    distinguish retrained weights from the old ones, and hashing is much faster than sampling.
    """
    parts: list[Any] = [_VERSION, settings]
    for source in sources:
        path = Path(source)
        is_file = path.is_file()
        parts.append([path.suffix.lower(), sha256_of(path)] if is_file else source)
    suffixes = _SMALL_SUFFIXES + ((".safetensors",) if list(sources) == [TEACHER] else ())
    for path in sorted(directory.iterdir()):
        if (path.suffix in suffixes or is_tokenizer_file(path.name)) and path.is_file():
            parts.append([path.name, sha256_of(path)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
