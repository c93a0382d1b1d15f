"""KL divergences between language-model heads, with the logits of one chunk of tokens at a time.

The forward pass computes, for each chunk of tokens, the logits, the loss, and the gradients of the
hidden states and of the head, then frees the logits. The backward pass only scales these gradients
(Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989, section 3.2). Without grad mode, only the logits
and the loss are computed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

_CHUNK_LOGITS = 1 << 24  # elements, 64 MiB in float32

_TokenLosses = Callable[[torch.Tensor, slice], torch.Tensor]
"""A function of a chunk's logits, ``(tokens, vocab)``, and of the chunk's slice of the tokens.

Returns the loss of each token, ``(tokens,)``.
"""

ChunkLoss = Callable[[torch.Tensor, slice, bool], tuple[torch.Tensor, torch.Tensor | None]]
"""A function of a chunk's logits, its slice of the tokens, and whether a gradient is needed.

The logits are the output of the head, before any scale; the function may overwrite them. Returns
the chunk's part of the loss, and its gradient with respect to the logits, in their dtype.
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
    """Implement `hybridize.kernels.linear_kl_divergence`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def divergence(logits: torch.Tensor, chunk: slice) -> torch.Tensor:
        # The teacher gets no gradient, even if its tensors require one.
        target = (target_hidden[chunk].detach() @ target_weight.detach().T).to(wide)
        target = target * (scales[1] / temperature)
        teacher = target.log_softmax(-1)
        student = (logits / temperature).log_softmax(-1)
        # A token of probability 0 for the teacher adds 0; 0 · -inf would be NaN.
        terms = teacher.exp() * (teacher - student)
        return terms.masked_fill(teacher == -torch.inf, 0.0).sum(-1) * temperature**2

    return _chunked(hidden, weight, scales[0], divergence, labels, label_weight, mask, chunk_size)


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
    """Implement `hybridize.kernels.linear_topk_kl_divergence`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def divergence(logits: torch.Tensor, chunk: slice) -> torch.Tensor:
        teacher = log_probs[chunk].to(wide)
        student = logits.log_softmax(-1).gather(-1, indices[chunk].long())
        terms = teacher.exp() * (teacher - student)
        terms = terms.masked_fill(teacher == -torch.inf, 0.0).sum(-1)
        teacher_other, student_other = _other_probability(teacher), _other_probability(student)
        return terms + teacher_other * (teacher_other.log() - student_other.log())

    return _chunked(hidden, weight, scale, divergence, labels, label_weight, mask, chunk_size)


def _other_probability(log_probs: torch.Tensor) -> torch.Tensor:
    """Return the probability of all tokens outside the top k, clamped to a positive minimum."""
    least = torch.finfo(log_probs.dtype).eps
    return (1 - log_probs.exp().sum(-1)).clamp(min=least)


def _chunked(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    scale: float,
    divergence: _TokenLosses,
    labels: torch.Tensor | None,
    label_weight: float,
    mask: torch.Tensor | None,
    chunk_size: int | None,
) -> torch.Tensor:
    """Return the mean loss of the counted tokens, with the cross-entropy to the labels mixed in."""

    def token_losses(logits: torch.Tensor, chunk: slice) -> torch.Tensor:
        losses = divergence(logits, chunk)
        if labels is not None and label_weight:
            labeled = (labels[chunk] >= 0).to(losses.dtype)
            entropy = cross_entropy(logits, labels[chunk], ignore_index=-100, reduction="none")
            # The loss of a token without a label is only the divergence.
            losses = losses + label_weight * labeled * (entropy - losses)
        return losses if mask is None else losses * mask[chunk].to(losses.dtype)

    def chunk_loss(
        raw: torch.Tensor, chunk: slice, wants_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32)) * scale
        with torch.enable_grad():
            logits.requires_grad_(wants_gradient)
            part = token_losses(logits, chunk).sum() / count
        if not part.requires_grad:
            return part, None
        (gradient,) = torch.autograd.grad(part, logits)
        return part.detach(), (gradient * scale).to(raw.dtype)

    count = counted_tokens(hidden, mask)
    return chunked_loss(hidden, weight, chunk_loss if count else None, chunk_size)


def counted_tokens(hidden: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Return the number of tokens that the mean is taken over."""
    return len(hidden) if mask is None else int(mask.sum())


def chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, chunk_loss: ChunkLoss | None, chunk_size: int | None
) -> torch.Tensor:
    """Return the sum of ``chunk_loss`` over all chunks of tokens.

    Args:
        hidden: ``(tokens, hidden)``; gets a gradient.
        weight: ``(vocab, hidden)``; gets a gradient.
        chunk_loss: called once for each chunk, in the forward pass; None makes the loss 0.
        chunk_size: tokens per chunk; None chooses as many as fill 64 MiB.
    """
    chunk_size = chunk_size or max(1, _CHUNK_LOGITS // len(weight))
    if not torch.is_grad_enabled():
        # Inside a Function, `ctx.needs_input_grad` does not know about grad mode.
        return _run_chunks(hidden, weight, chunk_loss, chunk_size, None, None)
    result: torch.Tensor = _ChunkedLoss.apply(hidden, weight, chunk_loss, chunk_size)
    return result


def _run_chunks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    chunk_loss: ChunkLoss | None,
    chunk_size: int,
    grad_hidden: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
) -> torch.Tensor:
    """Return the sum of ``chunk_loss``, and add the gradients to those tensors that are given."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    wants_gradient = grad_hidden is not None or grad_weight is not None
    total = torch.zeros((), dtype=wide, device=hidden.device)
    for start in range(0, len(hidden) if chunk_loss else 0, chunk_size):
        assert chunk_loss is not None
        chunk = slice(start, min(start + chunk_size, len(hidden)))
        rows = hidden[chunk]
        part, gradient = chunk_loss(rows @ weight.T, chunk, wants_gradient)
        total += part
        if gradient is None:
            continue
        if grad_hidden is not None:
            grad_hidden[chunk] = gradient @ weight
        if grad_weight is not None and grad_weight.dtype == gradient.dtype == rows.dtype:
            grad_weight.addmm_(gradient.T, rows)
        elif grad_weight is not None:
            grad_weight += gradient.T @ rows
    return total


class _ChunkedLoss(torch.autograd.Function):
    """A loss on the logits of a linear head, summed over chunks of tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        chunk_loss: ChunkLoss | None,
        chunk_size: int,
    ) -> torch.Tensor:
        """Return the loss, and compute the gradients that `backward` returns."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        total = _run_chunks(hidden, weight, chunk_loss, chunk_size, grad_hidden, grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that `forward` has computed."""
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else (hidden * grad).to(hidden.dtype),
            None if weight is None else (weight * grad).to(ctx.weight_dtype),
            None,
            None,
        )
