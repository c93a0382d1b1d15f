"""The original model's predictions, kept in a form that is compact and exact.

Let z = s h Wᵀ be the logits of the original and z' = s h' Wᵀ those of the changed model, with the
same head W and scale s. Let t be the distribution that tokens are predicted against. The expected
negative log-likelihood rises by

    Σ t (log p − log p') = logsumexp(z') − logsumexp(z) − s (h' − h) · (t W).

With t = p, the original's prediction, this is the KL divergence KL(p ‖ p'). With t = 1 for a label,
it is the rise of the cross-entropy. In both cases, one number and the vector ``t W`` per token
replace the original's logits, so that a measurement costs one product with the head.
"""

import torch

_CHUNK_LOGITS = 1 << 24  # elements, 64 MiB in float32


class KeptPredictions:
    """What is kept of the original's predictions for some tokens: two vectors of the hidden size.

    Args:
        hidden: ``(tokens, hidden)``, the original's last hidden states, in float32 or wider.
        head: ``(vocab, hidden)``, the head of the original and of all changed models.
        scale: factor of the logits.
        labels: ``(tokens,)``, measure the cross-entropy to these tokens; the KL divergence if None.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        head: torch.Tensor,
        scale: float,
        labels: torch.Tensor | None = None,
    ) -> None:
        self._hidden, self._head, self._scale = hidden, head, scale
        self._log_sums = torch.empty(len(hidden), dtype=torch.float64, device=hidden.device)
        self._expected = torch.empty_like(hidden) if labels is None else head[labels]
        for chunk in self._chunks():
            self._log_sums[chunk], probabilities = self._softmax(hidden[chunk])
            if labels is None:
                self._expected[chunk] = probabilities @ head

    def rise(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the KL divergence, or the rise of the cross-entropy, for each token.

        Args:
            hidden: ``(tokens, hidden)``, the changed model's last hidden states.

        Returns:
            ``(tokens,)`` float64, in nats.
        """
        log_sums = torch.empty_like(self._log_sums)
        for chunk in self._chunks():
            log_sums[chunk], _ = self._softmax(hidden[chunk])
        change = (hidden.double() - self._hidden.double()) * self._expected.double()
        return log_sums - self._log_sums - self._scale * change.sum(-1)

    def _softmax(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logarithm of the sum of all exponentials, and the probabilities."""
        logits = (rows @ self._head.T).mul_(self._scale)
        largest = logits.amax(-1, keepdim=True)
        exponentials = logits.sub_(largest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        log_sums = (largest.double() + total.double().log()).squeeze(-1)
        return log_sums, exponentials.div_(total)

    def _chunks(self) -> list[slice]:
        size = max(1, _CHUNK_LOGITS // len(self._head))
        return [slice(start, start + size) for start in range(0, len(self._hidden), size)]
