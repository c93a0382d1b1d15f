"""Choose the text on which the selection ``recall`` measures retrieval."""

import math
from pathlib import Path

import torch

from hybridize.checkpoints.load import load_tokenizer
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.data.retrieval_text import (
    RetrievalText,
    far_tokens,
    key_value_text,
    next_token_losses,
    ordinary_tokens,
    repeated_text,
)
from hybridize.errors import InputError
from hybridize.modeling.model import HybridForCausalLM

_FEWEST = 16
"""The synthetic text needs this many different tokens, and the plain text this many far tokens."""


@torch.no_grad()
def retrieval_texts(
    model: HybridForCausalLM, directory: Path, dataset: PackedDataset, seed: int
) -> dict[str, RetrievalText]:
    """Return texts in which the model retrieves tokens, by kind.

    These are the kinds of synthetic text that the model can predict: its loss is at most half of
    that of a model that knows only which tokens occur. Small models often retrieve only in text
    like their training text. If the model can predict no synthetic text, the text is the given one,
    and the tokens to retrieve are those that need a long context.

    Args:
        model: the model.
        directory: its directory, with its tokenizer, if there is one.
        dataset: plain text. The synthetic text has as many tokens.
        seed: random seed.

    Raises:
        InputError: the model retrieves nothing in any of these texts.
    """
    special, separator = _special_tokens(model, directory)
    tokens = ordinary_tokens(dataset.ids, special)
    texts = {}
    if len(tokens) >= _FEWEST:
        sequences = max(1, len(dataset) // 2)
        shape = (sequences, dataset.length, seed)
        texts = {
            "repeated": repeated_text(tokens, *shape),
            "key-value": key_value_text(tokens, separator, *shape),
        }
    guessing = math.log(max(2, len(tokens)))
    solved = {k: text for k, text in texts.items() if _loss(model, text) <= guessing / 2}
    if solved:
        console.message(f"recall is measured on synthetic text: {', '.join(solved)}")
        return solved
    far = far_tokens(model, dataset)
    found = (far.labels >= 0).sum(1)
    if found.sum() < _FEWEST:
        raise InputError(
            f"`select=recall`: the model retrieves tokens neither in synthetic text nor in "
            f"{dataset.tokens:,} tokens of text; give another `calibration` text or more "
            "`select_tokens`, or choose `select=sensitivity`"
        )
    console.message(
        "recall is measured on the tokens of the text that need a long context, because the model "
        "does not retrieve in synthetic text"
    )
    has = found > 0
    return {"far": RetrievalText(far.ids[has], far.seq_idx[has], far.labels[has])}


def _loss(model: HybridForCausalLM, text: RetrievalText) -> float:
    """Return the mean loss of the tokens that can be retrieved."""
    counted = text.labels[:, :-1] >= 0
    return float(next_token_losses(model, text.ids, text.seq_idx)[counted].mean())


def _special_tokens(model: HybridForCausalLM, directory: Path) -> tuple[set[int], int | None]:
    """Return the special tokens, and the token that ends a line; None if there is no tokenizer."""
    config = model.config
    named = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    special = {
        token
        for tokens in named
        for token in (tokens if isinstance(tokens, list) else [tokens])
        if token is not None
    }
    try:
        tokenizer = load_tokenizer(directory)
    except InputError:  # text that the model generates needs none
        return special, None
    line_end = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    special |= set(tokenizer.all_special_ids)
    usable = [token for token in line_end if token not in special]
    return special, usable[0] if usable else None
