"""Text that a model writes itself, for when there is no other."""

from collections.abc import Iterator

import torch
from transformers import StaticCache

from hybridize.console import console
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.model import HybridForCausalLM

_MOST_ROWS = 256
_CACHE_AT_ONCE = 1 << 30  # bytes
_LONGEST = 1024


@torch.inference_mode()
def sample_documents(
    model: HybridForCausalLM, *, bos: int | None, eos: int | None, tokens: int, seed: int
) -> Iterator[list[int]]:
    """Yield documents that the model makes up, drawn from its own distribution.

    Rows are written side by side, each up to the model's context or 1,024 tokens. Where a row's
    document ends, another begins in it; so no row waits for the others. Keys and values have their
    place from the start: a cache that grows is copied for every token.

    Args:
        model: writes.
        bos, eos: what documents begin and end with; at least one of them.
        tokens: how many to draw, at least.
        seed: of the draws.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    begin = eos if bos is None else bos
    length = min(_LONGEST, model.config.max_position_embeddings)
    cost = cache_cost(model.config, length, model.dtype.itemsize)
    most = max(1, min(_MOST_ROWS, _CACHE_AT_ONCE // (cost.kv + cost.state)))
    count = min(most, -(-tokens // length))
    rounds = -(-tokens // (count * length))
    with console.progress("sampling text", rounds * count * length, "tokens") as progress:
        for _ in range(rounds):
            rows = [torch.full((count, 1), begin, device=model.device)]
            cache = StaticCache(model.config, max_cache_len=length)
            for _ in range(length - 1):
                output = model(rows[-1], cache=cache, use_cache=True, logits_to_keep=1)
                chances = output.logits[:, -1].float().softmax(-1)
                drawn = torch.multinomial(chances, 1, generator=generator)
                if bos is not None and eos is not None:
                    drawn = drawn.masked_fill(rows[-1] == eos, bos)
                rows.append(drawn)
                progress.advance(count)
            progress.advance(count)
            for row in torch.cat(rows, 1).tolist():
                yield from _documents(row, bos, eos)


def _documents(row: list[int], bos: int | None, eos: int | None) -> Iterator[list[int]]:
    """Take a row apart where a document ends or another begins."""
    document: list[int] = []
    for token in row:
        if token == bos and document:
            yield document
            document = []
        document.append(token)
        if token == eos and len(document) > 1:
            yield document
            document = []
    if document:
        yield document
