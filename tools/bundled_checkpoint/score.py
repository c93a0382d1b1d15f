"""How well a model does in the exam and on held-out prose, for the model card.

``hybridize eval`` measures the same with lm-eval; this is the plain loop that the training
script needs, so that training does not depend on the evaluation extra.
"""

import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .exam import read_exam
from .world import LETTERS, exam_prompt


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
    """Take the exam as MMLU is taken: all dev questions as shots, the likeliest letter counts.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        exam: the exam's directory.
        limit: questions per subject, from the first on; all of them without it.

    Returns:
        The share of right answers for each subject, and for all questions under ``"all"``.
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
