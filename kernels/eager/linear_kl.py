"""The divergence between two heads, a few tokens at a time while their logits are in the caches.

The gradient takes the place of the student's logits: beside them and the teacher's, nothing of
their size exists.
"""

from dataclasses import dataclass

import torch

from hybridize.kernels.eager.rows import row_tiles
from hybridize.kernels.reference.linear_kl import chunked_loss, tokens_that_count


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
    count = tokens_that_count(hidden, mask)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows = _Rows(wide, temperature, scales)
    # What each token counts for in the loss, and its label's share of that, ``(tokens, 1)``.
    shares = torch.full((len(hidden), 1), 1 / max(1, count), dtype=wide, device=hidden.device)
    if mask is not None:
        shares = shares * mask[:, None]
    if labels is None or not label_weight:
        labels = torch.full((len(hidden),), -1, device=hidden.device)
    label_shares = (labels >= 0)[:, None].to(wide) * label_weight
    known_labels = labels.clamp(min=0).long()[:, None]

    def step(
        logits: torch.Tensor, place: slice, wants_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        targets = target_hidden[place] @ target_weight.T
        total = logits.new_zeros((), dtype=wide)
        start = place.start
        for part, target in row_tiles(logits, targets, least=1):
            these = slice(start, start + len(part))
            losses, gradient = rows.losses(
                part,
                target,
                shares[these],
                label_shares[these],
                known_labels[these],
                wants_gradient,
            )
            total += losses
            if gradient is not None:
                part.copy_(gradient)
            start = these.stop
        return total, logits if wants_gradient else None

    return chunked_loss(hidden, weight, step if count else None, chunk_size)


@dataclass(frozen=True)
class _Rows:
    """The loss of some tokens: what ``hybridize.kernels.linear_kl_divergence`` is told of all."""

    wide: torch.dtype
    temperature: float
    scales: tuple[float, float]

    def losses(
        self,
        raw: torch.Tensor,
        raw_target: torch.Tensor,
        shares: torch.Tensor,
        label_shares: torch.Tensor,
        labels: torch.Tensor,
        wants_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the sum of some tokens' losses, and their gradient by the student's raw logits.

        Args:
            raw, raw_target: ``(tokens, vocab)``, as the heads give them.
            shares: ``(tokens, 1)``, what each token counts for.
            label_shares: ``(tokens, 1)``, how much of that is its label's.
            labels: ``(tokens, 1)``.
            wants_gradient: whether to find it.
        """
        logits = raw.to(self.wide) * self.scales[0]
        got = (logits / self.temperature).log_softmax(-1)
        wanted = (raw_target.to(self.wide) * (self.scales[1] / self.temperature)).log_softmax(-1)
        likely = wanted.exp()
        # Where the teacher gives no probability at all, 0 · -inf is 0 and not NaN.
        surprise = wanted.sub_(got).mul_(likely).masked_fill_(likely == 0, 0.0)
        losses = surprise.sum(-1, keepdim=True) * self.temperature**2
        of_labels = None
        if label_shares.any():
            of_labels = logits.log_softmax(-1)
            losses = losses.lerp(-of_labels.gather(-1, labels), label_shares)
        total = (losses * shares).sum()
        if not wants_gradient:
            return total, None
        gradient = got.exp_().sub_(likely).mul_((1 - label_shares) * self.temperature)
        if of_labels is not None:
            gradient += of_labels.exp_().mul_(label_shares)
            gradient.scatter_add_(-1, labels, -label_shares)
        return total, gradient.mul_(shares * self.scales[0])
