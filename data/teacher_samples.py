"""Sample text from a model, for users who have no other text."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hybridize.console import console
from hybridize.data.sampling_cache import SamplingCache
from hybridize.errors import InputError
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.model import HybridForCausalLM

_MAX_ROWS = 256
_MAX_CACHE_BYTES = 1 << 30
_MAX_LENGTH = 1024


def sample_documents(
    model: HybridForCausalLM,
    *,
    bos: int | None,
    eos: int | Sequence[int] | None,
    tokens: int,
    seed: int,
) -> Iterator[list[int]]:
    """Yield documents that the model generates; see `sample_from`."""
    documents = sample_from(model, None, bos=bos, eos=eos, tokens=tokens, seed=seed)
    return (document for _, document in documents)


@torch.inference_mode()
def sample_from(
    model: HybridForCausalLM,
    position: Any,
    *,
    bos: int | None,
    eos: int | Sequence[int] | None,
    tokens: int,
    seed: int,
) -> Iterator[tuple[Any, list[int]]]:
    """Yield documents that the model generates, sampled from its distribution, with positions.

    A position is: the number of the round, in which some rows are sampled; the state of the
    random generator before it, None for the seed; and the number of the document in the round.

    Rows are sampled side by side. Each is as long as the model's context, but at most 1,024 tokens.
    When a document ends within a row, the next one starts there. It does not see the previous
    documents, because it does not see them in training either, and because text after other
    documents has another distribution. The end of a row cuts off its last document.

    Args:
        model: generates the text.
        position: of the first document to yield; None for the beginning.
        bos: the first token of a document; the first of ``eos`` if None. If the model samples it,
            another document starts, because some models have no end token.
        eos: the tokens that end a document. One of ``bos`` and ``eos`` must be given.
        tokens: minimum number of tokens to sample.
        seed: random seed. The same seed on the same kind of device gives the same documents.
    """
    ends = [eos] if isinstance(eos, int) else list(eos or ())
    start = ends[0] if bos is None else bos
    length = min(_MAX_LENGTH, model.config.max_position_embeddings)
    cost = cache_cost(model.config, length, model.dtype.itemsize)
    max_rows = max(1, min(_MAX_ROWS, _MAX_CACHE_BYTES // (cost.kv + cost.state)))
    count = min(max_rows, -(-tokens // length))
    rounds = -(-tokens // (count * length))
    first, state, skipped = position or (0, None, 0)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    if state is not None:
        generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    total, done = rounds * count * length, first * count * length
    with console.progress("sampling text", total, "tokens", completed=done) as progress:
        for number in range(first, rounds):
            state = generator.get_state().numpy().tobytes().hex() if number else None
            rows = _Rows(model, start, ends, count, length)
            progress.advance(count)
            for _ in range(length - 1):
                rows.sample(generator)
                progress.advance(count)
            for index, document in enumerate(rows.documents()):
                if index >= skipped:
                    yield (number, state, index), document
            skipped = 0


class _Rows:
    """Rows of documents that grow by one token at a time.

    Args:
        model: generates the text.
        start: the first token of a document.
        ends: the tokens that end a document.
        count: number of rows.
        length: final number of tokens per row.
    """

    def __init__(
        self, model: HybridForCausalLM, start: int, ends: list[int], count: int, length: int
    ) -> None:
        self._model, self._start = model, start
        self._ends = torch.tensor(ends, dtype=torch.int64, device=model.device)
        self._cache = SamplingCache(model.config, length)
        self._tokens = torch.full((count, length), start, device=model.device)
        self._is_start = torch.zeros(count, length, dtype=torch.bool, device=model.device)
        self._is_start[:, 0] = True
        # The position at which each row's current document starts.
        self._document_starts = torch.zeros(count, dtype=torch.int64, device=model.device)
        self._positions = torch.arange(length, device=model.device)
        self._filled = 1

    def sample(self, generator: torch.Generator) -> None:
        """Append a token to every row: a start token after the end of a document, or a sample."""
        last, position = self._filled - 1, self._filled
        mask = None  # not needed while every row is in its first document
        if self._document_starts.any():
            mask = (self._positions[:position] >= self._document_starts[:, None]).long()
        output = self._model(
            self._tokens[:, last:position],
            attention_mask=mask,
            position_ids=last - self._document_starts[:, None],
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        probabilities = output.logits[:, -1].float().softmax(-1)
        if not probabilities.isfinite().all():
            raise InputError(
                f"{self._model.name_or_path}: its predictions are not finite, so it cannot "
                "generate text; check it with hybridize verify"
            )
        sampled = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        ended = torch.isin(self._tokens[:, last], self._ends) & ~self._is_start[:, last]
        sampled = sampled.masked_fill(ended, self._start)
        starts = ended | ((sampled == self._start) & ~torch.isin(sampled, self._ends))
        self._tokens[:, position], self._is_start[:, position] = sampled, starts
        if starts.any():
            self._document_starts[starts] = position
            self._cache.reset_states(starts)
        self._filled += 1

    def documents(self) -> Iterator[list[int]]:
        """Split the rows into documents."""
        for tokens, is_start in zip(self._tokens.cpu(), self._is_start.cpu(), strict=True):
            starts = is_start.nonzero()[1:, 0]
            for document in tokens.tensor_split(starts):
                yield document.tolist()
