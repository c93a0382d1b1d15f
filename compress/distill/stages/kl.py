"""Train the student end to end to predict the teacher's next-token distribution.

The loss is the forward KL divergence (Hinton et al. 2015, arXiv 1503.02531), optionally mixed with
the cross-entropy on the text. The kernels `linear_kl_divergence` and `linear_topk_kl_divergence`
compute both.

Predictions that do not count (`Stage.mask`) are left out before the head, so that they cost nothing
there.

Long sequences can be trained in segments (truncated back-propagation through time). Caches carry
the state from one segment to the next, and gradients stop at the boundary. Memory then depends on
the length of a segment instead of the length of a sequence.
"""

from collections.abc import Iterator
from typing import Any

import torch
from typing_extensions import override

from hybridize.compress.distill.batches import next_tokens
from hybridize.compress.distill.block_run import BlockRun, start_both
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.stages.base import Stage
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.data.kl import kl_from_hidden
from hybridize.kernels import linear_topk_kl_divergence
from hybridize.modeling.cache.segment import SegmentCache
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.sharded_weight import whole_weight


class KL(Stage):
    """The stage ``kl``. The loss is in nats per token, times the temperature squared."""

    def __init__(
        self, pair: Pair, config: DistillConfig, caches: TeacherCaches | None = None
    ) -> None:
        super().__init__(pair, config, caches)
        self._teacher = pair.teacher if self.caches.predictions is None else None
        self._common = 0 if self._teacher is None else pair.common_blocks()

    @override
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        total = 0.0
        for loss in self._losses(ids, seq_idx, indices):
            self.backward(loss)
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
        runs = _SegmentRuns(
            self._teacher,
            self.pair,
            self._common,
            segmented=length > segment_length,
            recomputed=self.config.gradient_checkpointing,
        )
        labels = next_tokens(ids, seq_idx) if self.config.label_weight else None
        for start in range(0, length, segment_length):
            segment = slice(start, min(start + segment_length, length))
            hidden, teacher_hidden = runs.run(ids[:, segment], seq_idx[:, segment])
            options: dict[str, Any] = {"label_weight": self.config.label_weight}
            counted, share = None, (segment.stop - start) / length
            if self.mask is not None:
                counted = self.mask[:, segment].flatten().nonzero()[:, 0]
                share = len(counted) / max(1, int(self.mask.sum()))
                counted = counted.to(hidden.device)
            if labels is not None:
                options["labels"] = _rows(labels[:, segment], counted)
            hidden = _rows(hidden, counted)
            if teacher_hidden is not None:
                teacher_hidden = _rows(teacher_hidden, counted)
            loss = self._divergence(hidden, teacher_hidden, indices, segment, counted, options)
            yield loss * share

    def _divergence(
        self,
        hidden: torch.Tensor,
        teacher_hidden: torch.Tensor | None,
        indices: torch.Tensor,
        segment: slice,
        counted: torch.Tensor | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Return the mean loss of some tokens, given the last hidden states of both models.

        Without the teacher's, its stored predictions of the segment are read. ``counted`` are the
        tokens' positions in the segment, and ``options`` are those of the kernel.
        """
        student = self.pair.student
        if teacher_hidden is not None:
            options["temperature"] = self.config.temperature
            return kl_from_hidden(student, hidden, self.teacher, teacher_hidden, **options)
        assert self.caches.predictions is not None
        tokens, log_probs = self.caches.predictions.read(indices, segment, hidden.device)
        head = whole_weight(student.lm_head.weight)
        return linear_topk_kl_divergence(
            hidden.to(head.dtype),
            head,
            _rows(tokens, counted),
            _rows(log_probs, counted),
            scale=1 / student.config.logits_scaling,
            **options,
        )


class _SegmentRuns:
    """Runs both models on one segment after the other. The blocks in common run once.

    Args:
        teacher: the teacher, or None if its predictions are stored.
        pair: the student and its teacher.
        common: the number of first blocks that both models have in common.
        segmented: whether there is more than one segment.
        recomputed: whether the student's activations are computed again in the backward pass.
    """

    def __init__(
        self,
        teacher: HybridForCausalLM | None,
        pair: Pair,
        common: int,
        *,
        segmented: bool,
        recomputed: bool,
    ) -> None:
        self._teacher, self._student, self._common = teacher, pair.student, common
        self._caches = (
            SegmentCache(teacher.config) if segmented and teacher is not None else None,
            SegmentCache(pair.student.config, recomputed=recomputed) if segmented else None,
        )

    def run(
        self, ids: torch.Tensor, seq_idx: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the student's and the teacher's last hidden states of the next segment.

        Each is ``(sequences, length, hidden)``; the teacher's are None if it does not run.
        """
        student_cache = self._caches[1]
        if student_cache is not None:
            student_cache.detach()
        if self._teacher is None:
            return BlockRun(self._student, ids, seq_idx, student_cache).finish(), None
        teacher, student = start_both(
            self._teacher, self._student, self._common, ids, seq_idx, self._caches
        )
        with torch.no_grad():
            teacher_hidden = teacher.finish()
        return student.finish(), teacher_hidden


def _rows(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Return the values of the tokens that count, ``(tokens, …)``, or of all tokens."""
    values = values.flatten(0, 1)
    return values if counted is None else values[counted]
