"""Text whose next tokens can be predicted only by retrieving them from the text before.

Such text shows what a model loses with its attention. Plain text hardly shows it, because only a
few of its tokens need retrieval (Arora et al. 2023, "Zoology", arXiv 2312.04927). There are three
kinds:

- `repeated_text`: random tokens, repeated (induction; Olsson et al. 2022, arXiv 2209.11895).
- `key_value_text`: pairs of random tokens, repeated in another order (associative recall).
- `far_tokens`: the tokens of plain text that a model predicts much better with a long context.

The first two are made of tokens that occur in a plain text, so that they fit every vocabulary. The
label of a position is the token after it, or `NO_LABEL` if that token cannot be retrieved.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from hybridize.data.packing import PackedDataset
from hybridize.modeling.model import HybridForCausalLM

NO_LABEL = -100
_SHORTEST = 8  # tokens before the first repetition
_BATCH = 4096  # tokens
_GAIN = 1.0
"""A token is far if its loss rises by this many nats when the context is short."""
_CONTEXT = 32
"""A short context has at least this many tokens, and less than twice as many."""


@dataclass(frozen=True)
class RetrievalText:
    """Sequences in which some next tokens can be retrieved.

    Attributes:
        ids: ``(sequences, length)`` int64.
        seq_idx: ``(sequences, length)`` int64, the number of each token's document.
        labels: ``(sequences, length)`` int64, the next token where it can be retrieved, elsewhere
            `NO_LABEL`.
    """

    ids: torch.Tensor
    seq_idx: torch.Tensor
    labels: torch.Tensor


def ordinary_tokens(ids: torch.Tensor, special: Collection[int]) -> torch.Tensor:
    """Return the different tokens of a text without the special ones, ``(tokens,)`` int64."""
    tokens = ids.unique().long()
    excluded = torch.tensor(sorted(special), dtype=torch.int64, device=tokens.device)
    return tokens[~torch.isin(tokens, excluded)]


def repeated_text(tokens: torch.Tensor, sequences: int, length: int, seed: int) -> RetrievalText:
    """Return documents of random tokens, each followed by the same tokens again.

    Args:
        tokens: the tokens to draw from.
        sequences: number of sequences; the documents of one are equally long.
        length: tokens per sequence, 2 or more.
        seed: random seed.
    """
    generator = torch.Generator().manual_seed(seed)

    def document(half: int) -> tuple[torch.Tensor, torch.Tensor]:
        copy = tokens[torch.randint(len(tokens), (half,), generator=generator)]
        # The first token of the second copy comes as a surprise.
        return torch.cat([copy, copy]), torch.arange(2 * half) > half

    return _fill(document, sequences, length)


def key_value_text(
    tokens: torch.Tensor, separator: int | None, sequences: int, length: int, seed: int
) -> RetrievalText:
    """Return documents of key-value pairs; the pairs of a document come again in another order.

    Args:
        tokens: the tokens to draw from, 2 or more; all keys and values of a document differ.
        separator: a token that ends each pair; None for none.
        sequences: number of sequences; the documents of one are equally long.
        length: tokens per sequence.
        seed: random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    width = 2 if separator is None else 3

    def document(half: int) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = min(max(1, half // width), len(tokens) // 2)
        drawn = tokens[torch.randperm(len(tokens), generator=generator)[: 2 * pairs]]
        columns = [drawn[:pairs], drawn[pairs:]]
        if separator is not None:
            columns.append(torch.full_like(columns[0], separator))
        first = torch.stack(columns, 1)
        again = first[torch.randperm(pairs, generator=generator)]
        is_target = torch.zeros(2, pairs, width, dtype=torch.bool)
        is_target[1, :, 1] = True
        return torch.cat([first, again]).flatten(), is_target.flatten()

    return _fill(document, sequences, length)


def _fill(
    document: Callable[[int], tuple[torch.Tensor, torch.Tensor]], sequences: int, length: int
) -> RetrievalText:
    """Fill each sequence with documents; the last one is cut.

    Args:
        document: takes half the number of tokens; returns a document, and which of its tokens can
            be retrieved.
        sequences, length: shape of the text. Half the length of a document is 8, 16, 32, …, up to
            half of a sequence, in turn.
    """
    halves = [max(1, length // 2)]
    while halves[-1] // 2 >= _SHORTEST:
        halves.append(halves[-1] // 2)
    rows = []
    for number in range(sequences):
        documents: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        count = 0
        while count < length:
            ids, is_target = document(halves[number % len(halves)])
            documents.append((ids, is_target, torch.full_like(ids, len(documents))))
            count += len(ids)
        rows.append([torch.cat(field)[:length] for field in zip(*documents, strict=True)])
    ids, is_target, seq_idx = (torch.stack(field) for field in zip(*rows, strict=True))
    return RetrievalText(ids, seq_idx, _labels(ids, is_target))


def far_tokens(model: HybridForCausalLM, dataset: PackedDataset) -> RetrievalText:
    """Return a dataset, with labels where the model needs a long context.

    A token has a label if the model's loss is at least one nat higher when it sees only the last
    32 to 63 tokens.

    Args:
        model: the model; it runs over the text three times.
        dataset: the text.
    """
    texts = []
    for indices in torch.arange(len(dataset)).split(max(1, _BATCH // dataset.length)):
        ids, seq_idx = dataset.sequences(indices)
        gain = _short_context_losses(model, ids, seq_idx) - next_token_losses(model, ids, seq_idx)
        starts_document = seq_idx.diff(dim=1) > 0
        is_far = torch.nn.functional.pad((gain > _GAIN) & ~starts_document, (1, 0))
        texts.append((ids, seq_idx, _labels(ids, is_far)))
    return RetrievalText(*(torch.cat(field) for field in zip(*texts, strict=True)))


def next_token_losses(
    model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor
) -> torch.Tensor:
    """Return the loss of each token but the first, ``(sequences, length - 1)``, on the CPU."""
    ids, seq_idx = ids.to(model.device), seq_idx.to(model.device)
    hidden = model.model(ids, seq_idx=seq_idx, use_cache=False).last_hidden_state
    head, scale = model.lm_head.weight, 1 / model.config.logits_scaling
    losses = [  # one sequence at a time, because the logits are large
        torch.nn.functional.cross_entropy(
            (row[:-1].to(head.dtype) @ head.T).float() * scale, row_ids[1:], reduction="none"
        )
        for row, row_ids in zip(hidden, ids, strict=True)
    ]
    return torch.stack(losses).cpu()


def _short_context_losses(
    model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor
) -> torch.Tensor:
    """Return the loss of each token but the first when only the last 32 to 63 tokens are seen."""
    length, losses = ids.shape[1], ids.new_zeros(len(ids), ids.shape[1] - 1, dtype=torch.float32)
    for start in range(0, max(1, length - _CONTEXT), _CONTEXT):
        window = slice(start, start + 2 * _CONTEXT)
        numbers = seq_idx[:, window]
        found = next_token_losses(model, ids[:, window], numbers - numbers[:, :1])
        skipped = _CONTEXT - 1 if start else 0  # the window before has seen more of the context
        losses[:, start + skipped : start + found.shape[1]] = found[:, skipped:]
    return losses


def _labels(ids: torch.Tensor, is_target: torch.Tensor) -> torch.Tensor:
    """Return the next token where it is a target, elsewhere `NO_LABEL`."""
    labels = torch.full_like(ids, NO_LABEL)
    labels[:, :-1] = torch.where(is_target[:, 1:], ids[:, 1:], NO_LABEL)
    return labels
