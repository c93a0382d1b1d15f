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
    """

    parameters: dict[str, nn.Parameter]

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

    @abstractmethod
    def training_step(
        self, ids: torch.Tensor, seq_idx: torch.Tensor, indices: torch.Tensor
    ) -> float:
        """Add the gradients of a batch's mean loss to the parameters' gradients; return the loss.

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
