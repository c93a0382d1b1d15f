"""The base class of all distillation stages."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.modeling.model import HybridForCausalLM


class Stage(ABC):
    """The loss of a stage, and the parameters that the stage trains.

    Args:
        pair: the student and its teacher.
        config: the options of the distillation.
        caches: what the teacher has computed already; nothing if None.

    Attributes:
        parameters: the parameters to train, by their names in the student.
        weight: the factor of the gradients that `backward` adds. The trainer sets it, because a
            step may consist of several batches of different sizes.
        backward_calls: how often `backward` was called.
        mask: ``(sequences, length)`` bool, which predictions of the next batch count; None for all.
            The trainer sets it before each batch of a stage whose entry in `STAGES` has
            ``masks_loss``. The mean of a batch in which nothing counts is 0.
    """

    parameters: dict[str, nn.Parameter]
    weight: float = 1.0
    backward_calls: int = 0
    mask: torch.Tensor | None = None

    def __init__(
        self, pair: Pair, config: DistillConfig, caches: TeacherCaches | None = None
    ) -> None:
        self.pair, self.config, self.caches = pair, config, caches or TeacherCaches()
        self.parameters = pair.parameters(config.train)

    @property
    def teacher(self) -> HybridForCausalLM:
        """The teacher, for stages that run it."""
        assert self.pair.teacher is not None
        return self.pair.teacher

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss, times `weight`, to the parameters' gradients."""
        self.backward_calls += 1
        (loss if self.weight == 1.0 else loss * self.weight).backward()

    @abstractmethod
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        """Add the gradients of a batch's mean loss with `backward`; return the loss.

        The batch is a part of a step: call ``self.backward(loss)``, not ``loss.backward()``, and
        return the loss without the weight.

        Args:
            ids, seq_idx: ``(sequences, length)`` int64 on the model's device, see `PackedDataset`.
            indices: ``(sequences,)``, the sequences' indices in the teacher's caches: first
                the training sequences, then the validation sequences.
        """

    @abstractmethod
    def validation_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        """Return a batch's mean loss, without gradients; see `training_step`."""
