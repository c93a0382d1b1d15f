"""Train the student end to end to predict the teacher's next-token distribution.

The loss is the forward KL divergence (Hinton et al. 2015, arXiv 1503.02531), optionally mixed with
the cross-entropy on the text. The kernels `linear_kl_divergence` and `linear_topk_kl_divergence`
compute both.

Long sequences can be trained in segments (truncated back-propagation through time). Caches carry
the state from one segment to the next, and gradients stop at the boundary. Memory then depends on
the length of a segment instead of the length of a sequence.
"""

from collections.abc import Iterator
from typing import Any

import torch
from typing_extensions import override

from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.stages.base import Stage
from hybridize.data.kl import kl_from_hidden
from hybridize.kernels import linear_topk_kl_divergence
from hybridize.modeling.cache.segment import SegmentCache
from hybridize.modeling.model import HybridForCausalLM


class KL(Stage):
    """The stage ``kl``. The loss is in nats per token, times the temperature squared."""

    @override
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        total = 0.0
        for loss in self._losses(ids, seq_idx, indices):
            loss.backward()
            total += float(loss.detach())
        return total

    @override
    @torch.no_grad()
    def validation_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        return sum(float(loss) for loss in self._losses(ids, seq_idx, indices))

    def _losses(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Yield each segment's part of the mean loss."""
        length = ids.shape[1]
        segment_length = min(self.config.tbptt_length or length, length)
        caches = _SegmentCaches(self.pair, length > segment_length)
        labels = _labels(ids, seq_idx)
        for start in range(0, length, segment_length):
            segment = slice(start, min(start + segment_length, length))
            hidden = caches.run(self.pair.student, ids[:, segment], seq_idx[:, segment])
            loss = self._divergence(hidden, caches, ids, seq_idx, indices, labels, segment)
            yield loss * ((segment.stop - start) / length)

    def _divergence(
        self,
        hidden: torch.Tensor,
        caches: "_SegmentCaches",
        ids: torch.Tensor,
        seq_idx: torch.Tensor,
        indices: torch.Tensor,
        labels: torch.Tensor,
        segment: slice,
    ) -> torch.Tensor:
        """Return a segment's mean loss, given the student's last hidden states."""
        student = self.pair.student
        options: dict[str, Any] = {
            "labels": labels[:, segment].flatten(),
            "label_weight": self.config.label_weight,
        }
        if self.teacher_cache is not None:
            tokens, log_probs = self.teacher_cache.read(indices, segment, ids.device)
            head = student.lm_head.weight
            return linear_topk_kl_divergence(
                hidden.to(head.dtype).flatten(0, 1),
                head,
                tokens.flatten(0, 1),
                log_probs.flatten(0, 1),
                scale=1 / student.config.logits_scaling,
                **options,
            )
        with torch.no_grad():
            teacher_hidden = caches.run(self.teacher, ids[:, segment], seq_idx[:, segment])
        return kl_from_hidden(
            student,
            hidden,
            self.teacher,
            teacher_hidden,
            temperature=self.config.temperature,
            **options,
        )


class _SegmentCaches:
    """The caches of both models between segments. Whole sequences need none."""

    def __init__(self, pair: Pair, segmented: bool) -> None:
        models = [model for model in (pair.student, pair.teacher) if model is not None]
        self._caches = {id(model): SegmentCache(model.config) for model in models if segmented}

    def run(
        self, model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor
    ) -> torch.Tensor:
        """Return the next segment's last hidden states, ``(sequences, length, hidden)``."""
        cache = self._caches.get(id(model))
        if cache is None:
            output = model.model(ids, seq_idx=seq_idx, use_cache=False)
        else:
            cache.detach()
            output = model.model(ids, seq_idx=seq_idx, cache=cache, use_cache=True)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


def _labels(ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
    """Return each token's next token within its document; -100 at the end of a document."""
    same = seq_idx[:, 1:] == seq_idx[:, :-1]
    return torch.nn.functional.pad(ids[:, 1:].masked_fill(~same, -100), (0, 1), value=-100)
