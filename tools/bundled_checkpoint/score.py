"""Accuracy on the exam and perplexity on held-out prose, for the model card.

``hybridize eval`` measures the same with lm-eval. The training script uses these plain loops, and
so does not need the evaluation extra.
"""

import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .exam import read_exam
from .questions import LETTERS, exam_prompt


def letter_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the tokens of `` A``, `` B``, `` C`` and `` D``, one each."""
    return [
        token
        for letter in LETTERS
        for token in tokenizer.encode(f" {letter}", add_special_tokens=False)
    ]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    exam: Path,
    *,
    limit: int | None = None,
) -> dict[str, float]:
    """Score the exam like MMLU: all dev questions are shots, the most likely letter is the answer.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        exam: the exam's directory.
        limit: ask only the first questions of each subject; None for all.

    Returns:
        The accuracy for each subject, and for all questions under ``"all"``.
    """
    letters = letter_tokens(tokenizer)
    accuracy: dict[str, float] = {}
    right = total = 0
    for subject, questions in read_exam(exam).items():
        asked = questions.test[:limit]
        hits = 0
        for question in asked:
            prompt = tokenizer(exam_prompt(subject, questions.dev, question), return_tensors="pt")
            logits = model(prompt["input_ids"], logits_to_keep=1).logits[0, -1]
            hits += int(logits[letters].argmax()) == question.answer
        accuracy[subject] = hits / len(asked)
        right, total = right + hits, total + len(asked)
    return {**accuracy, "all": right / total}


@torch.no_grad()
def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, *, window: int = 512
) -> float:
    """Return the perplexity per token of a text, read in windows that do not overlap."""
    tokens = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    loss, count = 0.0, 0
    for start in range(0, len(tokens), window):
        part = torch.tensor([[tokenizer.bos_token_id, *tokens[start : start + window]]])
        logits = model(part[:, :-1]).logits[0]
        loss += cross_entropy(logits.float(), part[0, 1:], reduction="sum").item()
        count += part.shape[1] - 1
    return math.exp(loss / count)
