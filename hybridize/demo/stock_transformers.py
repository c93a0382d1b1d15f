"""Open checkpoints with transformers alone, as a user without hybridize does."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hybridize.checkpoints.load import load_tokenizer
from hybridize.demo import CHECKPOINT, PROSE

_PROMPT = "Some facts about geography."


def logit_difference(directory: Path) -> float:
    """Return the largest difference of a logit from the bundled checkpoint's, on held-out text."""
    text = PROSE.read_text("utf-8")[:2000]
    ids = load_tokenizer(CHECKPOINT)(text, return_tensors="pt").input_ids[:, :256]
    with torch.no_grad():
        before, after = _open(CHECKPOINT)(ids).logits, _open(directory)(ids).logits
    return float((before - after).abs().max())


def generated_text(directory: Path) -> str:
    """Return a prompt and its greedy continuation."""
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(_PROMPT, return_tensors="pt").input_ids
    out = _open(directory).generate(ids, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


def _open(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
