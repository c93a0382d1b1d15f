"""A causal model for lm-eval: its own `HFLM` with less work per question and our progress bar.

Scores equal those of `HFLM` up to rounding. `HFLM` tokenizes; `PrefixScorer` runs the model. As in
`HFLM`, prompts that are too long lose their beginning.
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
from hybridize.evals.prefix_plan import Question, Row
from hybridize.evals.prefix_scorer import PrefixScorer
from hybridize.progress import Progress

Request = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessModel(HFLM):
    """A loaded causal model and its tokenizer, with lm-eval's interface.

    Attributes:
        prompts: number of different prompts that were scored so far.
        truncated: number of those that were too long and lost their beginning.

    Raises:
        InputError: the tokenizer has neither a BOS nor an EOS token.
    """

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
        self._scorer = PrefixScorer(model)
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
        batch_size = min(self.batch_size, self._scorer.texts_in_a_pass(window))
        with self._progress("scoring text", len(requests), "windows"):
            scores = self._loglikelihood_tokens(requests, override_bs=batch_size)
        return math.fsum(score for score, _ in scores), len(tokens)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score token sequences, and count the prompts that are too long for the model."""
        named = [(request[0], len(request[1]) + len(request[2])) for request in requests]
        self.prompts += len({name[0] for name, _ in named if name})
        self.truncated += len(
            {name[0] for name, length in named if name and length > self.max_length + 1}
        )
        questions, order = _group_by_context(requests, self.max_length)
        rows = sum(len(question.rows) for question in questions)
        with self._progress("scoring", rows, "prompts"):
            assert self._bar is not None
            scores = self._scorer.score(
                questions, override_bs or self.batch_size, self._bar.advance
            )
        found = [scores[question][row][answer] for question, row, answer in order]
        if any(math.isnan(score) for score, _ in found):  # the first choice would always win
            raise HybridizeError(
                f"{self.model.name_or_path}: the model computes NaN; "
                "check its weights, or evaluate with `dtype=float32`"
            )
        return found

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


def _group_by_context(
    requests: Sequence[Request], max_length: int
) -> tuple[list[Question], list[tuple[int, int, int]]]:
    """Group requests that follow each other and have the same context.

    Returns:
        The questions, whose contexts have lost the tokens at the beginning that are too many, and
        for each request the numbers of its question, its row and its answer.
    """
    questions: list[Question] = []
    order = []
    answers: dict[tuple[int, ...], list[int]] = {}
    previous: tuple[list[int], int] | None = None

    def finish() -> None:
        if previous is not None:
            rows = tuple(Row(inner, tuple(last)) for inner, last in answers.items())
            questions.append(Question(previous[0][previous[1] :], rows))

    for _, context, continuation in requests:
        if not 0 < len(continuation) <= max_length:
            raise InputError(
                f"an answer has {len(continuation)} tokens; it must have at least 1 and at most "
                f"`max_length={max_length}`"
            )
        cut = max(0, len(context) + len(continuation) - max_length - 1)
        if previous is None or cut != previous[1] or context != previous[0]:
            finish()
            previous, answers = (context, cut), {}
        *inner, last = continuation
        lasts = answers.setdefault(tuple(inner), [])
        order.append((len(questions), list(answers).index(tuple(inner)), len(lasts)))
        lasts.append(last)
    finish()
    return questions, order
