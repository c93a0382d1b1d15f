"""Score the answers to questions with a causal model that reads shared text once."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from hybridize.evals.prefix_plan import GPU_PASS, PASS, Batch, Question, Row, plan
from hybridize.modeling.cache.compact import make_cache
from hybridize.modeling.model import HybridForCausalLM

LOGIT_BYTES = 2**30
"""Maximum bytes of one pass's logits in float32, if the model can read a text in pieces."""

MIN_PIECE = 64  # positions with logits in a pass

# Tokens per forward pass with a lossy cache. A pass sees earlier text only through the cache.
CHUNK = 64

Score = tuple[float, bool]
"""The log-likelihood of an answer in nats, and whether it is the greedy one."""

_ATTENTION = {"full_attention", "sliding_attention"}


class PrefixScorer:
    """Scores answers. Scores equal those of separate forward passes, up to rounding.

    Hybrids with a lossy cache and stateful models of transformers, which cannot continue a state
    with several tokens, read each sequence as a whole.

    Args:
        model: a causal model, in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        names = [name for name in ("cache", "past_key_values") if name in parameters]
        self._cache_argument = names[0] if names else ""
        if isinstance(model, HybridForCausalLM):
            self._lossy = model.model.cache_format.compact
            self.shares = not self._lossy
        else:
            self._lossy = False
            layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
            stateful = getattr(model, "_is_stateful", False) or not _ATTENTION.issuperset(layers)
            self.shares = bool(names) and not stateful

    def score(
        self, questions: Sequence[Question], batch_size: int, advance: Callable[[int], None]
    ) -> list[list[list[Score]]]:
        """Score all answers.

        Args:
            questions: the questions; those with a common prefix next to each other.
            batch_size: maximum number of sequences in a forward pass.
            advance: is called with the number of sequences that were scored.

        Returns:
            The score of each question's rows' answers.
        """
        scores: dict[int, list[list[Score]]] = {}
        with torch.inference_mode():
            pass_cost = PASS if self._model.device.type == "cpu" else GPU_PASS
            for run in plan(questions, batch_size, share=self.shares, pass_cost=pass_cost):
                cache = self._read(None, [run.prefix]) if run.prefix else None
                for batch in run.batches:
                    found = self._score_batch(batch, cache, len(run.prefix), batch_size)
                    for question in batch.questions:
                        count = len(question.rows)
                        scores[id(question)], found = found[:count], found[count:]
                        advance(count)
        return [scores[id(question)] for question in questions]

    def texts_in_a_pass(self, length: int) -> int:
        """Return how many texts of this many tokens to score in one pass, at least one."""
        return max(1, self._positions // length)

    @property
    def _positions(self) -> int:
        """The number of positions whose logits fit into `LOGIT_BYTES`."""
        return LOGIT_BYTES // (4 * self._model.config.get_text_config().vocab_size)

    def _score_batch(
        self, batch: Batch, cache: Cache | None, prefix: int, batch_size: int
    ) -> list[list[Score]]:
        """Score a batch whose questions continue from the only row of ``cache``."""
        source = [0] * len(batch.questions)
        if batch.shared > prefix:
            contexts = [question.context[prefix : batch.shared] for question in batch.questions]
            cache = self._read(None if cache is None else _copy_rows(cache, source), contexts)
            source = list(range(len(batch.questions)))
        rows = [
            (source[index], [*question.context[batch.shared :], *row.inner], row)
            for index, question in enumerate(batch.questions)
            for row in question.rows
        ]
        found = []
        for first in range(0, len(rows), batch_size):
            sources, tokens, scored = zip(*rows[first : first + batch_size], strict=True)
            copied = None if cache is None else _copy_rows(cache, sources)
            found += self._score_rows(tokens, scored, copied)
        return found

    def _read(self, cache: Cache | None, rows: Sequence[Sequence[int]]) -> Cache:
        """Let the model read rows of equal length, and return its cache."""
        cache = self._new_cache() if cache is None else cache
        self._run(torch.tensor(rows, device=self._model.device), 1, cache)
        return cache

    def _score_rows(
        self, tokens: Sequence[Sequence[int]], rows: Sequence[Row], cache: Cache | None
    ) -> list[list[Score]]:
        """Score sequences that continue from the rows of ``cache``."""
        width = max(map(len, tokens))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(tokens):
            ids[index, : len(row)] = torch.tensor(row)
        ids = ids.to(self._model.device)
        scores = [
            _RowScore(row, len(row_tokens)) for row, row_tokens in zip(rows, tokens, strict=True)
        ]
        first = min(each.first for each in scores)
        piece = max(MIN_PIECE, self._positions // len(rows))
        if self.shares and width - first > piece:
            cache = self._new_cache() if cache is None else cache
            if first:
                self._run(ids[:, :first], 1, cache)
            pieces = range(first, width, piece)
        else:
            pieces, piece = range(first, width, width), width
        for start in pieces:
            begin = start if len(pieces) > 1 else 0
            end = min(start + piece, width)
            logits = self._run(ids[:, begin:end], end - start, cache)
            for index, each in enumerate(scores):
                each.add(logits[index], start, ids[index])
        return [each.result() for each in scores]

    def _run(self, ids: torch.Tensor, keep: int, cache: Cache | None) -> torch.Tensor:
        """Return the logits of the last ``keep`` positions."""
        if self._lossy:
            return self._run_in_chunks(ids, keep)
        options = {} if cache is None else {self._cache_argument: cache}
        run: Any = self._model(
            input_ids=ids, use_cache=cache is not None, logits_to_keep=keep, **options
        )
        logits: torch.Tensor = run.logits
        return logits

    def _run_in_chunks(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Read a text in chunks, through a lossy cache."""
        cache, logits = self._new_cache(), []
        first = ids.shape[1] - keep
        for start in range(0, ids.shape[1], CHUNK):
            chunk = ids[:, start : start + CHUNK]
            end = start + chunk.shape[1]
            needed = max(1, min(chunk.shape[1], end - first))
            run: Any = self._model(
                input_ids=chunk, cache=cache, use_cache=True, logits_to_keep=needed
            )
            if end > first:
                logits.append(run.logits)
        return torch.cat(logits, 1)

    def _new_cache(self) -> Cache:
        if isinstance(self._model, HybridForCausalLM):
            return make_cache(self._model.config, self._model.model.cache_format)
        return DynamicCache(config=self._model.config)


class _RowScore:
    """The scores of one row, from the logits of one piece after another.

    Attributes:
        first: the first scored position of the row.
    """

    def __init__(self, row: Row, length: int) -> None:
        self._row = row
        self._length = length
        self.first = length - len(row.inner) - 1
        self._log_likelihoods: list[torch.Tensor] = []
        self._greedy: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, start: int, ids: torch.Tensor) -> None:
        """Add logits.

        Args:
            logits: ``(positions, vocab)``, of the positions from ``start`` on.
            start: a position of the row.
            ids: ``(length,)``, the tokens of the row, with padding at the end.
        """
        low, high = max(self.first, start), min(self._length, start + logits.shape[0])
        if low >= high:
            return
        logits = logits[low - start : high - start].float()
        total, best = logits.logsumexp(-1), logits.argmax(-1)
        following = ids[low + 1 : min(high, self._length - 1) + 1]
        inner = len(following)
        self._log_likelihoods.append(
            logits[:inner].gather(-1, following[:, None])[:, 0] - total[:inner]
        )
        self._greedy.append(best[:inner] == following)
        if high == self._length:
            last = torch.tensor(self._row.last, device=ids.device)
            self._last_log_likelihoods = logits[-1, last] - total[-1]
            self._last_greedy = best[-1] == last

    def result(self) -> list[Score]:
        """Return the score of each answer."""
        inner = torch.cat(self._log_likelihoods).double().sum().item()
        greedy = bool(torch.cat(self._greedy).all())
        return [
            (inner + last, greedy and is_greedy)
            for last, is_greedy in zip(
                self._last_log_likelihoods.double().tolist(),
                self._last_greedy.tolist(),
                strict=True,
            )
        ]


def _copy_rows(cache: Cache, rows: Sequence[int]) -> Cache:
    """Return a cache with copies of these rows; ``cache`` itself does not change."""
    copied = copy.copy(cache)
    copied.layers = [_copy_layer(layer) for layer in cache.layers]
    copied.reorder_cache(torch.LongTensor(rows))  # index_select, which copies
    return copied


def _copy_layer(layer: Any) -> Any:
    """Copy a layer of a cache and its dictionaries of states, but not the tensors."""
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(copied, name, dict(value))
    return copied
