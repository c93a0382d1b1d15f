"""A causal model for lm-eval: its own `HFLM` with less work per question and our progress bar.

Scores equal those of `HFLM`, which tokenizes, batches, and cuts off the beginning of prompts that
are too long. It pads on the right. The padding does not change the scores, because neither causal
attention nor a recurrence lets a token see later ones.
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
from typing_extensions import override

from hybridize.checkpoints.load import check_tokens
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.cache.compact import make_cache
from hybridize.progress import Progress

# Maximum number of tokens that one forward pass scores: with a vocabulary of 128k, their logits in
# float32 need 4 GB.
MAX_SCORED_TOKENS = 8192

# Tokens per forward pass with a lossy cache. A pass sees earlier text only through the cache.
CHUNK = 64

Request = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessModel(HFLM):
    """A loaded causal model and its tokenizer, with lm-eval's interface.

    Attributes:
        prompts: number of different prompts that were scored so far.
        truncated: number of those that were too long and lost their beginning.

    Raises:
        InputError: the tokenizer has neither a BOS nor an EOS token.
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
            backend="causal",  # HFLM would guess it from the model type
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
        )
        if self.prefix_token_id is None:
            raise InputError(
                f"{model.name_or_path}: the tokenizer has neither a BOS nor an EOS token, one of "
                "which a text must begin with; set one of them in tokenizer_config.json"
            )
        self.prompts = 0
        self.truncated = 0
        self._bar: Progress | None = None
        self._scored_tokens: int | None = None
        # lm-eval tokenizes the context of a question once per answer choice.
        self._encode = lru_cache(maxsize=8)(super().tok_encode)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Tokenize as `HFLM` does, with a cache of the last few texts.

        Raises:
            InputError: a token is not in the model's vocabulary.
        """
        ids = list(self._encode(string, add_special_tokens, left_truncate_len, **kwargs))
        check_tokens(ids, self.model.config.vocab_size, self.model.name_or_path)
        return ids

    def get_model_info(self) -> dict[str, Any]:
        """Describe the model in memory; `HFLM` would look it up on the hub."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": self.revision,
            "model_sha": getattr(self.config, "_commit_hash", None) or "",
        }

    @override
    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    @override
    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        lengths = [len(self.tok_encode(*request.args)) for request in requests]
        windows = sum(math.ceil(length / self.max_length) for length in lengths)
        with self._progress("scoring", windows, "windows"):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    @override
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        with self._progress("generating", len(requests), "answers"):
            return super().generate_until(requests, disable_tqdm=True)

    def score_text(self, text: str, window: int) -> tuple[float, int]:
        """Score each token of a text once, with lm-eval's rolling windows.

        The text is tokenized without special tokens. The first window begins with BOS (with EOS if
        the tokenizer has no BOS), each later one with the last token of the window before it. The
        last window begins early enough to be full.

        Args:
            text: the text.
            window: maximum number of tokens that the model sees.

        Returns:
            The log-likelihood in nats, and the number of tokens.

        Raises:
            InputError: the text has no tokens.
        """
        tokens = self.tok_encode(text, add_special_tokens=False)
        if not tokens:
            raise InputError("`perplexity`: the text has no token that the tokenizer knows")
        windows = get_rolling_token_windows(
            tokens, prefix_token=self.prefix_token_id, max_seq_len=window, context_len=1
        )
        requests: list[Request] = [(None, *make_disjoint_window(each)) for each in windows]
        batch_size = max(1, min(self.batch_size, MAX_SCORED_TOKENS // window))
        softmax_dtype, self.softmax_dtype = self.softmax_dtype, torch.float32
        try:
            with self._progress("scoring text", len(requests), "windows"):
                scores = [
                    score
                    for first in range(0, len(requests), batch_size)
                    for score, _ in self._loglikelihood_tokens(requests[first : first + batch_size])
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
        """Score token sequences, and count the prompts that are too long for the model."""
        # HFLM runs the model once for continuations that differ only in their last token.
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
        """Return logits ``(batch, kept, vocab)`` of the last positions only.

        In each row, `HFLM` uses at most the last ``_scored_tokens`` positions before the padding.
        Logits of the other positions, often thousands, would only cost time and memory.
        """
        keep = 0
        if self._scored_tokens is not None:
            # Padding is zeros. If a text ends in token 0, this keeps more than needed.
            padding = (inps.flip(-1) == 0).cumprod(-1).sum(-1).max().item()
            keep = min(inps.shape[-1], int(padding) + self._scored_tokens)
        with torch.inference_mode():
            logits = self._logits(inps, keep)
        if logits.isnan().any():  # with NaN scores, the first choice would always win
            raise HybridizeError(
                f"{self.model.name_or_path}: the model computes NaN; "
                "check its weights, or evaluate with `dtype=float32`"
            )
        if self._bar:
            self._bar.advance(len(inps))
        return logits

    def _logits(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Return the logits of the last ``keep`` positions; 0 means all positions.

        If the model's cache is lossy, the model reads the text in chunks, through the cache.
        """
        cache_format = getattr(getattr(self.model, "model", None), "cache_format", None)
        if cache_format is None or not cache_format.compact:
            return self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        cache, logits = make_cache(self.model.config, cache_format), []
        first = ids.shape[1] - (keep or ids.shape[1])
        for start in range(0, ids.shape[1], CHUNK):
            chunk = ids[:, start : start + CHUNK]
            end = start + chunk.shape[1]
            needed = max(1, min(chunk.shape[1], end - first))
            run = self.model(input_ids=chunk, cache=cache, use_cache=True, logits_to_keep=needed)
            if end > first:
                logits.append(run.logits)
        return torch.cat(logits, 1)

    @override
    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        generated = super()._model_generate(context, *args, **kwargs)
        if self._bar:
            self._bar.advance(len(context))
        return generated

    @contextmanager
    def _progress(self, description: str, total: int, unit: str) -> Iterator[None]:
        if self._bar is not None:  # a caller already shows its progress
            yield
            return
        name = PurePath(self.model.name_or_path).name
        with console.progress(f"{name}: {description}", total, unit) as self._bar:
            try:
                yield
            finally:
                self._bar = None
