"""The stages of distillation, with their default tokens and learning rates.

To add a stage, write one file in this folder and add one entry to `STAGES`.

This module imports no torch, so that ``hybridize distill --help`` is quick. The class of a stage
is imported when the stage is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridize.compress.registry import import_target

if TYPE_CHECKING:
    from hybridize.compress.distill.config import DistillConfig
    from hybridize.compress.distill.pair import Pair
    from hybridize.compress.distill.stages.base import Stage
    from hybridize.compress.distill.teacher_caches import TeacherCaches


@dataclass(frozen=True)
class StageSpec:
    """The defaults and the requirements of a stage.

    Attributes:
        target: ``"module:Class"``, a subclass of `hybridize.compress.distill.stages.base.Stage`.
        help: what the student learns, in a few words, for ``--help``.
        loss: name and unit of the loss, for tables and plots.
        tokens: default number of training tokens.
        learning_rate: default peak learning rate for ``train="mixers"``.
        learning_rate_all: default peak learning rate for ``train="all"``. It is lower, because
            pretrained weights need smaller updates than new blocks.
        needs_teacher: whether the stage uses the teacher.
        reads_teacher_cache: whether the stage can read the predictions that ``cache_teacher``
            stores instead of running the teacher.
        reads_block_cache: whether the stage can read the inputs and outputs of attention blocks
            that ``cache_blocks`` stores. It still runs the teacher for sequences that do not fit.
        needs_matching_blocks: whether the student needs the teacher's hidden size and number of
            blocks, because the stage compares blocks or hidden states.
        trains_mixers_only: whether the stage trains new mixers even with ``train="all"``.
        masks_loss: whether the loss counts only the tokens that ``loss_on`` names. Other stages
            use all tokens.
    """

    target: str
    help: str
    loss: str
    tokens: int = 8_000_000
    learning_rate: float = 1e-3
    learning_rate_all: float = 3e-4
    needs_teacher: bool = True
    reads_teacher_cache: bool = False
    reads_block_cache: bool = False
    needs_matching_blocks: bool = False
    trains_mixers_only: bool = False
    masks_loss: bool = False

    def runs_teacher(self, cached: bool) -> bool:
        """Return whether the stage runs the teacher.

        Args:
            cached: whether the teacher's predictions are stored.
        """
        return self.needs_teacher and not (cached and self.reads_teacher_cache)


STAGES: dict[str, StageSpec] = {
    "align": StageSpec(
        "hybridize.compress.distill.stages.align:Align",
        help="the output of each attention block that was replaced",
        loss="relative error",
        tokens=2_000_000,
        learning_rate=1e-3,
        learning_rate_all=1e-3,  # align trains new blocks only
        reads_block_cache=True,
        needs_matching_blocks=True,
        trains_mixers_only=True,
    ),
    "hidden": StageSpec(
        "hybridize.compress.distill.stages.hidden:Hidden",
        help="the teacher's hidden states",
        loss="relative error",
        tokens=2_000_000,
        learning_rate=1e-3,
        learning_rate_all=3e-4,
        needs_matching_blocks=True,
    ),
    "kl": StageSpec(
        "hybridize.compress.distill.stages.kl:KL",
        help="the teacher's next-token distribution",
        loss="KL, nats per token",
        tokens=8_000_000,
        learning_rate=1e-3,
        learning_rate_all=3e-4,
        reads_teacher_cache=True,
        masks_loss=True,
    ),
}
"""All stages by name. Another package may add entries before it runs a command."""


def make_stage(
    name: str, pair: Pair, config: DistillConfig, caches: TeacherCaches | None = None
) -> Stage:
    """Return a stage that is ready to train.

    Args:
        name: one of `STAGES`.
        pair: the student and its teacher.
        config: the options of the distillation.
        caches: what the teacher has computed already; nothing if None.
    """
    stage_class: type[Stage] = import_target(STAGES[name].target)
    return stage_class(pair, config, caches)
