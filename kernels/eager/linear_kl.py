"""The KL divergence between two heads, on tiles of logits that stay in the CPU's caches.

The gradient overwrites the student's logits, so a chunk needs memory for the student's and the
teacher's logits only.
"""

from dataclasses import dataclass

import torch

from hybridize.kernels.eager.rows import row_tiles
from hybridize.kernels.reference.linear_kl import chunked_loss, counted_tokens


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
    count = counted_tokens(hidden, mask)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = _TileLoss(wide, temperature, scales)
    # Each token's weight in the mean, and the weight of the cross-entropy in the token's loss; both
    # are ``(tokens, 1)``.
    token_weights = torch.full(
        (len(hidden), 1), 1 / max(1, count), dtype=wide, device=hidden.device
    )
    if mask is not None:
        token_weights = token_weights * mask[:, None]
    if labels is None or not label_weight:
        labels = torch.full((len(hidden),), -1, device=hidden.device)
    label_weights = (labels >= 0)[:, None].to(wide) * label_weight
    # Negative labels have weight 0, but `gather` needs an index that exists.
    label_indices = labels.clamp(min=0).long()[:, None]

    def chunk_loss(
        logits: torch.Tensor, chunk: slice, wants_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        targets = target_hidden[chunk] @ target_weight.T
        total = logits.new_zeros((), dtype=wide)
        start = chunk.start
        for tile, target in row_tiles(logits, targets, multiple=1):
            tokens = slice(start, start + len(tile))
            part, gradient = loss.sum_and_gradient(
                tile,
                target,
                token_weights[tokens],
                label_weights[tokens],
                label_indices[tokens],
                wants_gradient,
            )
            total += part
            if gradient is not None:
                tile.copy_(gradient)
            start = tokens.stop
        return total, logits if wants_gradient else None

    return chunked_loss(hidden, weight, chunk_loss if count else None, chunk_size)


@dataclass(frozen=True)
class _TileLoss:
    """Computes the loss of one tile of tokens; the fields are the same for all tiles."""

    wide: torch.dtype
    temperature: float
    scales: tuple[float, float]

    def sum_and_gradient(
        self,
        raw: torch.Tensor,
        raw_target: torch.Tensor,
        token_weights: torch.Tensor,
        label_weights: torch.Tensor,
        labels: torch.Tensor,
        wants_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weighted sum of the losses, and its gradient with respect to ``raw``.

        Args:
            raw, raw_target: ``(tokens, vocab)``, the outputs of the heads.
            token_weights: ``(tokens, 1)``, the weight of each token in the sum.
            label_weights: ``(tokens, 1)``, the weight of the cross-entropy in the token's loss.
            labels: ``(tokens, 1)``.
            wants_gradient: whether to compute the gradient; None is returned otherwise.
        """
        logits = raw.to(self.wide) * self.scales[0]
        student = (logits / self.temperature).log_softmax(-1)
        teacher = (raw_target.to(self.wide) * (self.scales[1] / self.temperature)).log_softmax(-1)
        teacher_probs = teacher.exp()
        # A token of probability 0 for the teacher adds 0; 0 · -inf would be NaN.
        terms = teacher.sub_(student).mul_(teacher_probs).masked_fill_(teacher_probs == 0, 0.0)
        losses = terms.sum(-1, keepdim=True) * self.temperature**2
        log_probs = None  # at temperature 1, for the labels
        if label_weights.any():
            log_probs = logits.log_softmax(-1)
            losses = losses.lerp(-log_probs.gather(-1, labels), label_weights)
        total = (losses * token_weights).sum()
        if not wants_gradient:
            return total, None
        gradient = student.exp_().sub_(teacher_probs).mul_((1 - label_weights) * self.temperature)
        if log_probs is not None:
            gradient += log_probs.exp_().mul_(label_weights)
            gradient.scatter_add_(-1, labels, -label_weights)
        return total, gradient.mul_(token_weights * self.scales[0])
