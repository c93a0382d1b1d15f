"""The student learns the teacher's next-token distribution, end to end.

Forward KL divergence (Hinton et al. 2015, arXiv 1503.02531), optionally mixed with the
cross-entropy to the text. Rows longer than a segment are run segment by segment: the state goes
on, the gradients do not (truncated back-propagation through time), so that memory depends on
the segment and not on the row.
"""

from collections.abc import Iterator
from typing import Any

import torch

from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.kernels import linear_kl_divergence, linear_topk_kl_divergence
from hybridize.modeling.cache.hybrid import SegmentCache
from hybridize.modeling.model import HybridForCausalLM


class KL:
    """See the module. The loss is in nats per token, times the temperature squared.

    Attributes:
        cached: what the teacher said, where it was written down; asked instead of the teacher.
    """

    def __init__(self, pair: Pair, settings: DistillSettings) -> None:
        self.parameters = pair.parameters(settings.train)
        self.cached: TeacherCache | None = None
        self._pair, self._settings = pair, settings

    def learn(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """See `Stage.learn`."""
        total = 0.0
        for loss in self._losses(ids, seq_idx, rows):
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def measure(self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor) -> float:
        """See `Stage.measure`."""
        return sum(float(loss) for loss in self._losses(ids, seq_idx, rows))

    def _losses(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Yield each segment's part of the mean loss."""
        length = ids.shape[1]
        size = min(self._settings.segment or length, length)
        caches = _Caches(self._pair, length > size)
        labels = _labels(ids, seq_idx)
        for start in range(0, length, size):
            piece = slice(start, min(start + size, length))
            hidden = caches.run(self._pair.student, ids[:, piece], seq_idx[:, piece])
            loss = self._divergence(hidden, caches, ids, seq_idx, rows, labels, piece)
            yield loss * ((piece.stop - start) / length)

    def _divergence(
        self,
        hidden: torch.Tensor,
        caches: "_Caches",
        ids: torch.Tensor,
        seq_idx: torch.Tensor,
        rows: torch.Tensor,
        labels: torch.Tensor,
        piece: slice,
    ) -> torch.Tensor:
        student = self._pair.student
        head, scale = student.lm_head.weight, 1 / student.config.logits_scaling
        flat = hidden.to(head.dtype).flatten(0, 1)
        options: dict[str, Any] = {
            "labels": labels[:, piece].flatten(),
            "label_weight": self._settings.label_weight,
        }
        if self.cached is not None:
            indices, log_probs = self.cached.rows(rows, piece, ids.device)
            return linear_topk_kl_divergence(
                flat, head, indices.flatten(0, 1), log_probs.flatten(0, 1), scale=scale, **options
            )
        teacher = self._pair.teacher
        assert teacher is not None
        with torch.no_grad():
            wanted = caches.run(teacher, ids[:, piece], seq_idx[:, piece])
        target = teacher.lm_head.weight
        return linear_kl_divergence(
            flat,
            head,
            wanted.to(target.dtype).flatten(0, 1),
            target,
            temperature=self._settings.temperature,
            scales=(scale, 1 / teacher.config.logits_scaling),
            **options,
        )


class _Caches:
    """What both models remember of the segments before; nothing where rows are run whole."""

    def __init__(self, pair: Pair, segmented: bool) -> None:
        models = [model for model in (pair.student, pair.teacher) if model is not None]
        self._caches = {id(model): SegmentCache(model.config) for model in models if segmented}

    def run(
        self, model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states of the next segment, ``(rows, length, hidden)``."""
        cache = self._caches.get(id(model))
        if cache is None:
            output = model.model(ids, seq_idx=seq_idx, use_cache=False)
        else:
            cache.detach()
            output = model.model(ids, seq_idx=seq_idx, cache=cache, use_cache=True)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


def _labels(ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
    """Return every token's successor in its document, -100 where there is none in its row."""
    same = seq_idx[:, 1:] == seq_idx[:, :-1]
    return torch.nn.functional.pad(ids[:, 1:].masked_fill(~same, -100), (0, 1), value=-100)
