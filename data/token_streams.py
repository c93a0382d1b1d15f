"""Turn sources into tokenized documents."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridize.checkpoints.load import check_tokens, load_model, load_tokenizer
from hybridize.data.chat_tokens import ChatTokenizer
from hybridize.data.conversations import Document
from hybridize.data.documents import read_source
from hybridize.data.mixing import Tokenized, TokenSource
from hybridize.data.packing import hide
from hybridize.data.rows import RowReader
from hybridize.data.sources import Source
from hybridize.data.teacher_samples import sample_from
from hybridize.errors import InputError
from hybridize.modeling.model import HybridForCausalLM

_DOCUMENTS_PER_BATCH = 256
_CHARACTERS_PER_BATCH = 1 << 18


def open_texts(
    sources: Sequence[Source],
    revisions: Sequence[str | None],
    *,
    model: Path,
    vocab_size: int,
    seed: int,
    option: str,
    rows: RowReader,
    loss_on: str,
) -> list[TokenSource]:
    """Return the tokenized documents of some sources.

    Args:
        sources: the sources, without ``teacher``.
        revisions: of those that are datasets on the hub; None for the newest.
        model: the directory of the tokenizer.
        vocab_size: number of token ids.
        seed: random seed for shuffling datasets on the hub.
        option: keyword of the option that named the sources, for error messages.
        rows: reads the rows, and decides about those that are malformed.
        loss_on: the tokens of conversations to learn, see `ChatTokenizer`.
    """
    tokenizer = load_tokenizer(model)
    chats = ChatTokenizer(tokenizer, model, loss_on)

    def tokenize(texts: list[str]) -> Iterator[np.ndarray]:
        for ids in tokenizer(texts, verbose=False).input_ids if texts else []:
            if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
                ids.append(tokenizer.eos_token_id)
            check_tokens(ids, vocab_size, model)
            yield np.array(ids, dtype=np.int32)

    def read(source: Source, revision: str | None, position: Any) -> Tokenized:
        documents = read_source(
            source, option, position=position, seed=seed, revision=revision, rows=rows
        )
        for batch in _batches(documents):
            texts = tokenize([document for _, document in batch if isinstance(document, str)])
            for at, document in batch:
                if isinstance(document, str):
                    yield at, next(texts)
                    continue
                try:
                    ids, mask = chats.tokens(document)
                except InputError as error:
                    chats.check_template()
                    rows.skip(error, document.where)
                    continue
                check_tokens(ids, vocab_size, model)
                yield at, hide(np.array(ids, dtype=np.int32), mask)

    return [
        TokenSource(f"`{option}={source.given}`", source.weight, partial(read, source, revision))
        for source, revision in zip(sources, revisions, strict=True)
    ]


def _batches(documents: Iterator[tuple[Any, Document]]) -> Iterator[list[tuple[Any, Document]]]:
    """Yield documents in lists of bounded size, without empty ones."""
    batch, size = list[tuple[Any, Document]](), 0
    for document in documents:
        if document[1] or not isinstance(document[1], str):
            batch.append(document)
            size += len(document[1])
        if len(batch) == _DOCUMENTS_PER_BATCH or size >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_teacher(
    model: Path,
    *,
    tokens: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype | None,
    option: str,
) -> TokenSource:
    """Return documents that a model generates.

    Args:
        model: its directory.
        tokens: minimum number of tokens to sample.
        seed: random seed.
        device, dtype: where to sample, and the dtype to compute in.
        option: keyword of the option that named the source, for error messages.

    Raises:
        InputError: the model has no token to start a document with.
    """
    sampler = load_model(model, dtype=dtype, device=device)
    bos, eos = (_special_tokens(sampler, name) for name in ("bos_token_id", "eos_token_id"))
    where = f"`{option}=teacher`"
    if not bos + eos:
        raise InputError(
            f"{where}: {model} has neither a bos_token_id nor an eos_token_id to start a document "
            "with; give text instead"
        )
    if max(bos + eos) >= sampler.config.vocab_size:
        raise InputError(
            f"{model}: its bos_token_id or eos_token_id is {max(bos + eos)}, but its vocabulary "
            f"has {sampler.config.vocab_size} tokens"
        )

    def read(position: Any) -> Tokenized:
        documents = sample_from(
            sampler, position, bos=bos[0] if bos else None, eos=eos, tokens=tokens, seed=seed
        )
        return ((at, np.array(ids, dtype=np.int32)) for at, ids in documents)

    return TokenSource(where, None, read)


def _special_tokens(model: HybridForCausalLM, name: str) -> list[int]:
    """Return token ids from the generation config, else from the model config.

    The list is empty if neither has an entry ``name``.
    """
    for config in (model.generation_config, model.config):
        value = getattr(config, name, None)
        if value is not None:
            return list(value) if isinstance(value, list | tuple) else [value]
    return []
