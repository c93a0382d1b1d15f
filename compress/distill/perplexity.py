"""The perplexity of the student on the validation text."""

import torch
from torch.nn.functional import cross_entropy

from hybridize.compress.distill.batches import next_tokens
from hybridize.compress.distill.block_run import BlockRun
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.sharded_weight import whole_weight

_TOKENS_AT_ONCE = 256


@torch.no_grad()
def text_loss(
    model: HybridForCausalLM,
    ids: torch.Tensor,
    seq_idx: torch.Tensor,
    counted: torch.Tensor | None = None,
) -> tuple[float, int]:
    """Return the summed cross-entropy of next tokens, in nats, and the number of these tokens.

    All processes that share a sharded model must call this together.

    Args:
        model: the model.
        ids, seq_idx: ``(sequences, length)`` int64, see `PackedDataset`. The first token of a
            document is not predicted.
        counted: ``(sequences, length)`` bool, which predictions count; None for all.
    """
    hidden = BlockRun(model, ids, seq_idx).finish()
    head = whole_weight(model.lm_head.weight)
    labels, total = next_tokens(ids, seq_idx), 0.0
    if counted is not None:
        labels = labels.masked_fill(~counted.to(labels.device), -100)
    labels = labels.flatten()
    tokens = hidden.to(head.dtype).flatten(0, 1)
    for part in torch.arange(len(labels), device=labels.device).split(_TOKENS_AT_ONCE):
        logits = (tokens[part] @ head.T).float() / model.config.logits_scaling
        total += float(cross_entropy(logits, labels[part], ignore_index=-100, reduction="sum"))
    return total, int((labels != -100).sum())
