"""Hand any causal model to lm-eval: its own `HFLM`, with less work per question and our progress.

Scores are those of `HFLM`: it tokenizes, batches, cuts prompts that are too long from the left and
pads on the right, which neither a causal nor a recurrent model sees at the tokens before it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridize.checkpoints.load import check_tokens
from hybridize.console import Progress, console
from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.cache.compact import make_cache

# How many tokens one forward pass may score when each of them needs its row of logits: at a
# vocabulary of 128k in float32, 4 GB of them.
SCORED_AT_ONCE = 8192

# Tokens read at a time where the cache loses something: what is stored after each piece is all
# that the next one has of the text before it.
PIECE = 64

Request = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessModel(HFLM):
    """A loaded causal model and its tokenizer as lm-eval wants them.

    Attributes:
        prompts: how many different prompts were scored so far.
        truncated: how many of them were too long and lost their beginning.

    Raises:
        InputError: the tokenizer has no token that a text can begin with.
    """

    softmax_dtype: torch.dtype | None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            backend="causal",  # known to the caller, whatever the model_type
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
        )
        if self.prefix_token_id is None:
            raise InputError(
                f"{model.name_or_path}: the tokenizer has neither a BOS nor an EOS token to begin "
                "a text with; name one of them in tokenizer_config.json"
            )
        self.prompts = 0
        self.truncated = 0
        self._bar: Progress | None = None
        self._scored_tokens: int | None = None
        # Each of the choices of a question asks for the same context anew.
        self._encode = lru_cache(maxsize=8)(super().tok_encode)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Tokenize as `HFLM` does, remembering the last few texts.

        Raises:
            InputError: the model does not know a token.
        """
        ids = list(self._encode(string, add_special_tokens, left_truncate_len, **kwargs))
        check_tokens(ids, self.model.config.vocab_size, self.model.name_or_path)
        return ids

    def get_model_info(self) -> dict[str, Any]:
        """Describe the model from what is in memory; `HFLM` would ask the hub."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": self.revision,
            "model_sha": getattr(self.config, "_commit_hash", None) or "",
        }

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `lm_eval.api.model.LM.loglikelihood`."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Score whole texts; see `lm_eval.api.model.LM.loglikelihood_rolling`."""
        lengths = [len(self.tok_encode(*request.args)) for request in requests]
        windows = sum(math.ceil(length / self.max_length) for length in lengths)
        with self._progress("scoring", windows, "windows"):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate answers; see `lm_eval.api.model.LM.generate_until`."""
        with self._progress("generating", len(requests), "answers"):
            return super().generate_until(requests, disable_tqdm=True)

    def score_text(self, text: str, window: int) -> tuple[float, int]:
        """Score each token of a text once, with lm-eval's rolling windows.

        The text is tokenized without special tokens. The first window begins with BOS (EOS where
        the tokenizer has none), each later one with the last token of the window before it; the
        last one reaches back so far that it is full, too.

        Args:
            text: what to score.
            window: how many tokens the model sees at most.

        Returns:
            The log-likelihood in nats, and the number of tokens.

        Raises:
            InputError: there is nothing to score.
        """
        tokens = self.tok_encode(text, add_special_tokens=False)
        if not tokens:
            raise InputError("--perplexity: the text has no token that the tokenizer knows")
        pieces = get_rolling_token_windows(
            tokens, prefix_token=self.prefix_token_id, max_seq_len=window, context_len=1
        )
        requests: list[Request] = [(None, *make_disjoint_window(piece)) for piece in pieces]
        rows = max(1, min(self.batch_size, SCORED_AT_ONCE // window))
        softmax_dtype, self.softmax_dtype = self.softmax_dtype, torch.float32
        try:
            with self._progress("scoring text", len(requests), "windows"):
                scores = [
                    score
                    for first in range(0, len(requests), rows)
                    for score, _ in self._loglikelihood_tokens(requests[first : first + rows])
                ]
        finally:
            self.softmax_dtype = softmax_dtype
        return math.fsum(scores), len(tokens)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score token sequences, counting those that do not fit."""
        # What HFLM runs the model on: continuations that differ in their last token share a run.
        runs = len({tuple(context + continuation[:-1]) for _, context, continuation in requests})
        named = [(request[0], len(request[1]) + len(request[2])) for request in requests]
        self.prompts += len({name[0] for name, _ in named if name})
        self.truncated += len(
            {name[0] for name, length in named if name and length > self.max_length + 1}
        )
        self._scored_tokens = max(len(continuation) for *_, continuation in requests)
        try:
            with self._progress("scoring", runs, "prompts"):
                return super()._loglikelihood_tokens(
                    list(requests), disable_tqdm=True, override_bs=override_bs
                )
        finally:
            self._scored_tokens = None

    def _model_call(
        self,
        inps: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits ``(batch, kept, vocab)`` of the last positions that can matter.

        `HFLM` scores at most ``_scored_tokens`` positions before the padding of each row, and
        counts them from the end. A vocabulary's worth of logits for each of the thousands of
        other tokens of a prompt would be computed, held and thrown away.
        """
        keep = 0
        if self._scored_tokens is not None:
            # Padding is zeros; where a text ends in token 0, this only keeps more than needed.
            padding = (inps.flip(-1) == 0).cumprod(-1).sum(-1).max().item()
            keep = min(inps.shape[-1], int(padding) + self._scored_tokens)
        with torch.inference_mode():
            logits = self._logits(inps, keep)
        if logits.isnan().any():  # of NaN scores, the first choice would always be the best
            raise HybridizeError(
                f"{self.model.name_or_path}: the model computes NaN; "
                "check its weights, or evaluate with --dtype float32"
            )
        if self._bar:
            self._bar.advance(len(inps))
        return logits

    def _logits(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Return the logits of the last ``keep`` positions, of all if 0.

        Where the model's cache loses something, it reads the text through the cache.
        """
        stored = getattr(getattr(self.model, "model", None), "cache_format", None)
        if stored is None or not stored.compact:
            return self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        cache, logits = make_cache(self.model.config, stored), []
        first = ids.shape[1] - (keep or ids.shape[1])
        for start in range(0, ids.shape[1], PIECE):
            piece = ids[:, start : start + PIECE]
            wanted = max(1, min(piece.shape[1], start + piece.shape[1] - first))
            run = self.model(input_ids=piece, cache=cache, use_cache=True, logits_to_keep=wanted)
            if start + piece.shape[1] > first:
                logits.append(run.logits)
        return torch.cat(logits, 1)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        generated = super()._model_generate(context, *args, **kwargs)
        if self._bar:
            self._bar.advance(len(context))
        return generated

    @contextmanager
    def _progress(self, description: str, total: int, unit: str) -> Iterator[None]:
        if self._bar is not None:  # part of something that already shows how far it is
            yield
            return
        name = PurePath(self.model.name_or_path).name
        with console.progress(f"{name}: {description}", total, unit) as self._bar:
            try:
                yield
            finally:
                self._bar = None
