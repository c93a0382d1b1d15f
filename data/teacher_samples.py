"""Text that a model writes itself, for when there is no other."""

from collections.abc import Iterator, Sequence

import torch

from hybridize.console import console
from hybridize.data.sampling_cache import SamplingCache
from hybridize.errors import InputError
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.model import HybridForCausalLM

_MOST_ROWS = 256
_CACHE_AT_ONCE = 1 << 30  # bytes
_LONGEST = 1024


@torch.inference_mode()
def sample_documents(
    model: HybridForCausalLM,
    *,
    bos: int | None,
    eos: int | Sequence[int] | None,
    tokens: int,
    seed: int,
) -> Iterator[list[int]]:
    """Yield documents that the model makes up, drawn from its own distribution.

    Rows are written side by side, each up to the model's context or 1,024 tokens. Where a row's
    document ends, another begins in it, and sees nothing of the one before: training keeps the
    documents of a row apart, too, and what a model writes after ten others is not what it would
    write by itself. A document ends with its row if not before.

    Args:
        model: writes.
        bos: what documents begin with; the first of ``eos`` if None. Where the model draws it,
            as models do that know no other end, it begins another document.
        eos: what documents end with, any of them. One of ``bos`` and ``eos`` must be given.
        tokens: how many to draw, at least.
        seed: of the draws. On a device of the same kind it gives the same documents again.
    """
    ends = [eos] if isinstance(eos, int) else list(eos or ())
    begin = ends[0] if bos is None else bos
    length = min(_LONGEST, model.config.max_position_embeddings)
    cost = cache_cost(model.config, length, model.dtype.itemsize)
    most = max(1, min(_MOST_ROWS, _CACHE_AT_ONCE // (cost.kv + cost.state)))
    count = min(most, -(-tokens // length))
    rounds = -(-tokens // (count * length))
    generator = torch.Generator(device=model.device).manual_seed(seed)
    with console.progress("sampling text", rounds * count * length, "tokens") as progress:
        for _ in range(rounds):
            rows = _Rows(model, begin, ends, count, length)
            progress.advance(count)
            for _ in range(length - 1):
                rows.draw(generator)
                progress.advance(count)
            yield from rows.documents()


class _Rows:
    """Rows of documents that grow by one token at a time.

    Args:
        model: writes.
        begin: what documents begin with.
        ends: what they end with.
        count: rows.
        length: how long they will be.
    """

    def __init__(
        self, model: HybridForCausalLM, begin: int, ends: list[int], count: int, length: int
    ) -> None:
        self._model, self._begin = model, begin
        self._ends = torch.tensor(ends, dtype=torch.int64, device=model.device)
        self._cache = SamplingCache(model.config, length)
        self._tokens = torch.full((count, length), begin, device=model.device)
        self._begins = torch.zeros(count, length, dtype=torch.bool, device=model.device)
        self._begins[:, 0] = True
        self._starts = torch.zeros(count, dtype=torch.int64, device=model.device)
        self._places = torch.arange(length, device=model.device)
        self._filled = 1

    def draw(self, generator: torch.Generator) -> None:
        """Add a token to every row: a beginning where a document has ended, else a drawn one."""
        last, place = self._filled - 1, self._filled
        mask = None  # while all rows are in their first documents
        if self._starts.any():
            mask = (self._places[:place] >= self._starts[:, None]).long()
        output = self._model(
            self._tokens[:, last:place],
            attention_mask=mask,
            position_ids=last - self._starts[:, None],
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chances = output.logits[:, -1].float().softmax(-1)
        if not chances.isfinite().all():
            raise InputError(
                f"{self._model.name_or_path}: its predictions are not finite, so it cannot write "
                "text; check it with hybridize verify"
            )
        drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        ended = torch.isin(self._tokens[:, last], self._ends) & ~self._begins[:, last]
        drawn = drawn.masked_fill(ended, self._begin)
        begins = ended | ((drawn == self._begin) & ~torch.isin(drawn, self._ends))
        self._tokens[:, place], self._begins[:, place] = drawn, begins
        if begins.any():
            self._starts[begins] = place
            self._cache.forget(begins)
        self._filled += 1

    def documents(self) -> Iterator[list[int]]:
        """Take the rows apart where documents begin."""
        for tokens, begins in zip(self._tokens.cpu(), self._begins.cpu(), strict=True):
            borders = begins.nonzero()[1:, 0]
            for document in tokens.tensor_split(borders):
                yield document.tolist()
