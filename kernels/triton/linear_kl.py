"""The divergence between two heads, with each chunk's softmaxes and gradient in one launch.

The gradient takes the place of the student's logits: beside them and the teacher's, nothing of
their size exists.
"""

import torch

from hybridize.kernels.reference.linear_kl import chunked_loss, tokens_that_count
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
    """See `hybridize.kernels.linear_kl_divergence`."""
    count = tokens_that_count(hidden, mask)
    counted = labels if label_weight else None

    def step(
        logits: torch.Tensor, place: slice, wants_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens, vocab = logits.shape
        losses = logits.new_empty(tokens, dtype=wide_dtype(logits.dtype))
        target = target_hidden[place] @ target_weight.T
        with torch.cuda.device_of(logits):
            kernels.kl_rows[(tokens,)](
                logits, target, None if counted is None else counted[place].contiguous(),
                None if mask is None else mask[place].contiguous(), losses, vocab, count,
                SCALE=float(scales[0]), TARGET_SCALE=float(scales[1]),
                TEMPERATURE=float(temperature), LABEL_WEIGHT=float(label_weight),
                WANTS_GRADIENT=wants_gradient, BLOCK=_BLOCK, ACC=accumulator(logits.dtype),
                num_warps=_WARPS,
            )  # fmt: skip
        return losses.sum(), logits if wants_gradient else None

    return chunked_loss(hidden, weight, step if count else None, chunk_size)
