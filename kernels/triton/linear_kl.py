"""The KL divergence between two heads, with one launch per chunk for loss and gradient.

The gradient overwrites the student's logits, so a chunk needs memory for the student's and the
teacher's logits only.
"""

import torch

from hybridize.kernels.reference.linear_kl import chunked_loss, counted_tokens
from hybridize.kernels.triton import linear_kl_kernels as kernels
from hybridize.kernels.triton.launch import accumulator, wide_dtype

_BLOCK, _WARPS = 4096, 8


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
    used_labels = labels if label_weight else None

    def chunk_loss(
        logits: torch.Tensor, chunk: slice, wants_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens, vocab = logits.shape
        losses = logits.new_empty(tokens, dtype=wide_dtype(logits.dtype))
        target = target_hidden[chunk] @ target_weight.T
        with torch.cuda.device_of(logits):
            kernels.kl_rows[(tokens,)](
                logits, target, None if used_labels is None else used_labels[chunk].contiguous(),
                None if mask is None else mask[chunk].contiguous(), losses, vocab, count,
                SCALE=float(scales[0]), TARGET_SCALE=float(scales[1]),
                TEMPERATURE=float(temperature), LABEL_WEIGHT=float(label_weight),
                WANTS_GRADIENT=wants_gradient, BLOCK=_BLOCK, ACC=accumulator(logits.dtype),
                num_warps=_WARPS,
            )  # fmt: skip
        return losses.sum(), logits if wants_gradient else None

    return chunked_loss(hidden, weight, chunk_loss if count else None, chunk_size)
