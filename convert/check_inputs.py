"""The inputs on which the check compares models.

Positions change the logits through RoPE, whose frequencies may depend on the length of the text,
and through sliding windows. A RoPE boundary needs no long text, because a model accepts any
positions: a few tokens are numbered from just below the boundary to just above it. A window needs a
text that is longer than the window.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.checkpoints.load import check_tokens, load_tokenizer
from hybridize.checkpoints.stock_model import quiet_transformers
from hybridize.conversion.check_report import Unreached, without_folders
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec

LENGTH = 32
"""Tokens of an input, and the number of last tokens at which logits are compared."""

MAX_TOKENS = 4096 + LENGTH
"""Longest input, because attention masks take memory quadratic in the length."""

MAX_WORK = 2e11
"""Largest product of tokens and parameters: about ten seconds on one core."""

TEXT = (
    "The quick brown fox jumps over the lazy dog; it was, in 1905, the first of its kind. "
    "Nobody knows why the farmer's daughter smiled when she heard about the strange animal."
)

_ORIGINAL, _CONTEXT = "original_max_position_embeddings", "max_position_embeddings"


@dataclass(frozen=True)
class CheckInput:
    """One input.

    Attributes:
        name: the input in words.
        ids: token ids, ``(1, length)``.
        positions: their positions, ``(1, length)``; None for 0, 1, ….
    """

    name: str
    ids: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.ids.shape[1]

    @property
    def is_whole(self) -> bool:
        """Whether all tokens are compared, and not only the last ones."""
        return self.length <= LENGTH


def check_inputs(
    spec: ModelSpec, directory: Path, parameters: int
) -> tuple[list[CheckInput], list[Unreached]]:
    """Return the inputs for a model, and those that are left out.

    Args:
        spec: the model.
        directory: its directory, which may have a tokenizer.
        parameters: its number of parameters; large models get no long inputs.
    """
    inputs, unreached = [CheckInput("random tokens", _random(spec, LENGTH))], []
    try:
        inputs.append(CheckInput("a text", _text(spec, directory)))
    except InputError as error:
        reason = without_folders(str(error).removeprefix(f"{directory}: "), directory)
        unreached.append(Unreached("a text", reason))
    inputs += [
        CheckInput(f"positions around {at:,} ({name})", _random(spec, LENGTH), _around(at))
        for name, at in _rope_boundaries(spec)
    ]
    window = spec.sliding_window
    if window is not None and window < spec.max_position_embeddings:
        name, length = f"beyond the sliding window of {window:,}", window + LENGTH
        limit = min(MAX_TOKENS, int(MAX_WORK / parameters))
        if length <= limit:
            inputs.append(CheckInput(name, _random(spec, length)))
        else:
            reason = f"needs {length:,} tokens; the limit for this model is {limit:,}"
            unreached.append(Unreached(name, reason))
    return inputs, unreached


def _rope_boundaries(spec: ModelSpec) -> list[tuple[str, int]]:
    """Return the positions at which RoPE may change, ascending, with the fields that name them."""
    if spec.head_dim is None:
        return []
    found = {spec.max_position_embeddings: _CONTEXT}
    original = spec.rope.get(_ORIGINAL)
    if original is not None:
        found.setdefault(int(original), _ORIGINAL)
    return [(name, at) for at, name in sorted(found.items())]


def _around(boundary: int) -> torch.Tensor:
    first = max(0, boundary - LENGTH // 2)
    return torch.arange(first, first + LENGTH)[None]


def _random(spec: ModelSpec, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, spec.vocab_size, (1, length), generator=generator)


def _text(spec: ModelSpec, directory: Path) -> torch.Tensor:
    """Return the tokens of the built-in text.

    Raises:
        InputError: there is no tokenizer, or it does not fit the model.
    """
    with quiet_transformers():
        ids = load_tokenizer(directory)(TEXT).input_ids[:LENGTH]
    check_tokens(ids, spec.vocab_size, directory)
    if not ids:
        raise InputError(f"{directory}: the tokenizer gives no tokens")
    return torch.tensor([ids])
