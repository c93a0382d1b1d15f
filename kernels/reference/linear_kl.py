"""Divergences between language-model heads, without the logits of more than a chunk of tokens.

The forward walks over chunks of tokens. Each chunk's logits are made, used for the loss and, at
once, for the gradients of hidden states and head, and forgotten; the backward only scales what is
there (Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989, section 3.2).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

_LOGITS_AT_ONCE = 1 << 24  # elements, 64 MiB in float32

_Loss = Callable[[torch.Tensor, slice], torch.Tensor]
"""From a chunk's logits ``(tokens, vocab)`` and its place: each token's loss, ``(tokens,)``."""

ChunkStep = Callable[[torch.Tensor, slice, bool], tuple[torch.Tensor, torch.Tensor | None]]
"""From a chunk's logits as the head gives them, which it may overwrite, its place, and whether a
gradient is wanted: the chunk's part of the loss, and its gradient by these logits in their dtype.
"""


def linear_kl_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_hidden: torch.Tensor,
    target_weight: torch.Tensor,
    *,
    temperature: float = 1.0,
    scales: tuple[float, float] = (1.0, 1.0),
    labels: torch.Tensor | None = None,
    label_weight: float = 0.0,
    mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """See `hybridize.kernels.linear_kl_divergence`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def loss(logits: torch.Tensor, place: slice) -> torch.Tensor:
        # The teacher gets no gradient, even where its tensors ask for one.
        target = (target_hidden[place].detach() @ target_weight.detach().T).to(wide)
        target = target * (scales[1] / temperature)
        wanted = target.log_softmax(-1)
        got = (logits / temperature).log_softmax(-1)
        # Where the teacher gives no probability at all, 0 · -inf is 0 and not NaN.
        terms = wanted.exp() * (wanted - got)
        return terms.masked_fill(wanted == -torch.inf, 0.0).sum(-1) * temperature**2

    return _chunked(hidden, weight, scales[0], loss, labels, label_weight, mask, chunk_size)


def linear_topk_kl_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    log_probs: torch.Tensor,
    *,
    scale: float = 1.0,
    labels: torch.Tensor | None = None,
    label_weight: float = 0.0,
    mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """See `hybridize.kernels.linear_topk_kl_divergence`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def loss(logits: torch.Tensor, place: slice) -> torch.Tensor:
        wanted = log_probs[place].to(wide)
        got = logits.log_softmax(-1).gather(-1, indices[place].long())
        terms = wanted.exp() * (wanted - got)
        terms = terms.masked_fill(wanted == -torch.inf, 0.0).sum(-1)
        rest_wanted, rest_got = _rest(wanted), _rest(got)
        return terms + rest_wanted * (rest_wanted.log() - rest_got.log())

    return _chunked(hidden, weight, scale, loss, labels, label_weight, mask, chunk_size)


def _rest(log_probs: torch.Tensor) -> torch.Tensor:
    """Return the probability that a distribution's largest entries leave over, above zero."""
    least = torch.finfo(log_probs.dtype).eps
    return (1 - log_probs.exp().sum(-1)).clamp(min=least)


def _chunked(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    scale: float,
    divergence: _Loss,
    labels: torch.Tensor | None,
    label_weight: float,
    mask: torch.Tensor | None,
    chunk_size: int | None,
) -> torch.Tensor:
    def loss(logits: torch.Tensor, place: slice) -> torch.Tensor:
        total = divergence(logits, place)
        if labels is not None and label_weight:
            counted = (labels[place] >= 0).to(total.dtype)
            of_labels = cross_entropy(logits, labels[place], ignore_index=-100, reduction="none")
            # A token without a label has the divergence alone.
            total = total + label_weight * counted * (of_labels - total)
        return total if mask is None else total * mask[place].to(total.dtype)

    def step(
        raw: torch.Tensor, place: slice, wants_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32)) * scale
        with torch.enable_grad():
            logits.requires_grad_(wants_gradient)
            part = loss(logits, place).sum() / count
        if not part.requires_grad:
            return part, None
        (gradient,) = torch.autograd.grad(part, logits)
        return part.detach(), (gradient * scale).to(raw.dtype)

    count = tokens_that_count(hidden, mask)
    return chunked_loss(hidden, weight, step if count else None, chunk_size)


def tokens_that_count(hidden: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Return over how many tokens the mean is taken."""
    return len(hidden) if mask is None else int(mask.sum())


def chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, step: ChunkStep | None, chunk_size: int | None
) -> torch.Tensor:
    """Return the sum over chunks of what ``step`` says of each; 0 without one.

    Args:
        hidden: ``(tokens, hidden)``; gets a gradient.
        weight: ``(vocab, hidden)``; gets a gradient.
        step: called once for each chunk, in the forward.
        chunk_size: tokens of a chunk; as many as fill 64 MiB if None.
    """
    chunk_size = chunk_size or max(1, _LOGITS_AT_ONCE // len(weight))
    result: torch.Tensor = _ChunkedLoss.apply(hidden, weight, step, chunk_size)
    return result


class _ChunkedLoss(torch.autograd.Function):
    """The mean over tokens of a loss of a linear head's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        step: ChunkStep | None,
        chunk_size: int,
    ) -> torch.Tensor:
        """Add up the loss, and the gradients that are asked for."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden) if step else 0, chunk_size):
            assert step is not None
            place = slice(start, min(start + chunk_size, len(hidden)))
            rows = hidden[place]
            part, gradient = step(rows @ weight.T, place, wants_hidden or wants_weight)
            total += part
            if gradient is None:
                continue
            if grad_hidden is not None:
                grad_hidden[place] = gradient @ weight
            if grad_weight is not None and grad_weight.dtype == gradient.dtype == rows.dtype:
                grad_weight.addmm_(gradient.T, rows)
            elif grad_weight is not None:
                grad_weight += gradient.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients."""
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else (hidden * grad).to(hidden.dtype),
            None if weight is None else (weight * grad).to(ctx.weight_dtype),
            None,
            None,
        )
