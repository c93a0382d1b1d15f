"""`hybridize distill`: train a converted checkpoint to behave like the original model."""

from dataclasses import replace
from pathlib import Path

import torch

from hybridize.checkpoints import check_output
from hybridize.checkpoints.hub import resolve
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import check_pair
from hybridize.compress.distill.pipeline import DistillPipeline
from hybridize.compress.distill.results import DistillResult
from hybridize.compress.distill.stages import STAGES
from hybridize.compress.workdir import resumable
from hybridize.errors import InputError
from hybridize.extras import require_extra
from hybridize.modeling.devices import choose_device
from hybridize.options import takes_options


@takes_options(DistillConfig)
def distill(student: str | Path, output: str | Path, config: DistillConfig) -> DistillResult:
    """Train a student to predict what its teacher predicts.

    By default, only the blocks that replaced attention are trained.

    The run keeps its state in ``OUTPUT.distill`` beside the output, and deletes it at the end.
    ``resume`` continues an interrupted run from its last save. The result is then the same as
    without the interruption.

    Args:
        student: a directory that `hybridize.convert` wrote.
        output: the directory to write, in the student's format and dtypes.
        config: the options; you can also give each option as a keyword.

    Returns:
        The result, with the figures that the command prints.

    Raises:
        InputError: the models, the data or the options do not fit together; nothing was trained.
        HybridizeError: training failed; the saved state is still there.
    """
    device = choose_device(config.device)
    config = replace(config, dtype=_training_dtype(config.dtype, device))
    student_dir, output = resolve(student), Path(output)
    teacher_dir = resolve(config.teacher, weights=not config.dry_run)
    # A dry run reads no more than the headers of a teacher on the hub.
    teacher = config.teacher if config.dry_run else teacher_dir
    swapped = check_pair(student_dir, teacher, any_shape=config.accepts_any_student)
    if not swapped and not config.accepts_any_student:
        names = [name for name, spec in STAGES.items() if not spec.needs_matching_blocks]
        raise InputError(
            f"{student}: none of its blocks replaced an attention block of the teacher; "
            f"`stages={','.join(names)}` with `train=all` trains its other blocks"
        )
    if not swapped and config.other_learning_rates:
        raise InputError(
            f"{student}: has no new blocks, so all parameters have one learning rate; leave "
            f"`other_learning_rates[{next(iter(config.other_learning_rates))}]` out"
        )
    check_output(output, student_dir, force=config.force)
    pipeline = DistillPipeline(student_dir, teacher_dir, output, swapped, config, device)
    if config.dry_run:
        return pipeline.describe()
    require_extra("train", "matplotlib", "distillation")
    with resumable(pipeline.work):
        pipeline.claim()
        try:
            return pipeline.run()
        except InputError:
            if not config.resume:
                pipeline.abandon()
            raise


def _training_dtype(name: str, device: torch.device) -> str:
    """Return the dtype to compute in, given the option and the device."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return name
