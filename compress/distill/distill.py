"""`hybridize distill`: a converted checkpoint learns from the model that it came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import check_output
from hybridize.checkpoints.hub import resolve
from hybridize.compress.distill.pair import check_pair
from hybridize.compress.distill.results import DistillResult
from hybridize.compress.distill.run import Run
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.stages import (
    DEFAULT_TOKENS,
    check_stages,
    default_rates,
)
from hybridize.data.source import TEACHER
from hybridize.errors import InputError
from hybridize.extras import require_extra
from hybridize.modeling.devices import choose_device, choose_dtype


def distill(
    student: str | Path,
    output: str | Path,
    *,
    teacher: str | Path,
    data: Sequence[str] = (TEACHER,),
    data_tokens: int | None = None,
    stages: Sequence[str] = ("align", "kl"),
    tokens: int | None = None,
    stage_tokens: Mapping[str, int] | None = None,
    learning_rates: Mapping[str, float] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    save_every: int = 200,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> DistillResult:
    """Train the blocks that replaced attention to do what the teacher does.

    Works in ``OUTPUT.distill`` beside the output and removes it in the end. A run that was
    killed goes on from its last save with ``resume``, to the same result.

    Args:
        student: a directory that `hybridize.convert` wrote.
        output: the directory to write, in the student's format and dtypes.
        teacher: the model that the student was converted from.
        data: files or datasets of text (see `load_packed_dataset`), or ``("teacher",)``: the teacher
            writes it.
        data_tokens: how much text to use; what the longest stage needs, if None.
        stages: which, in their order: ``align``, ``hidden``, ``kl``.
        tokens: training tokens of the last stage; the others keep their proportion to it.
        stage_tokens: training tokens by stage, before ``tokens``.
        learning_rates: by stage.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: what is computed in: ``float32`` or ``bfloat16``; ``auto`` is the latter on CUDA.
        save_every: steps between saves.
        resume: go on with a run that was interrupted.
        force: replace an existing output, and forget an interrupted run.
        dry_run: check and count only; nothing is read but configurations, nothing is written.
        **settings: the other fields of `DistillSettings`.

    Returns:
        What was done, with the figures that the command shows.

    Raises:
        InputError: models, data or options that do not fit; nothing was trained.
        HybridizeError: training failed; what was saved is still there.
    """
    check_stages(tuple(stages))
    place = choose_device(device)
    chosen = DistillSettings(
        stages=tuple(stages),
        tokens=_tokens(tuple(stages), tokens, stage_tokens or {}),
        learning_rates=default_rates(settings.get("train", "mixers")) | dict(learning_rates or {}),
        dtype=_dtype_name(dtype, place),
        **settings,
    )
    student_dir, teacher_dir, output = resolve(student), resolve(teacher), Path(output)
    whole = chosen.train == "all" and set(stages) == {"kl"}
    swapped = check_pair(student_dir, teacher_dir, any_shape=whole)
    if not swapped and not whole:
        raise InputError(
            f"{student}: no block of it replaced attention of the teacher; "
            "--stages kl --train all trains the rest"
        )
    check_output(output, student_dir, force=force)
    run = Run(student_dir, teacher_dir, output, swapped, chosen, place, tuple(data), data_tokens)
    if dry_run:
        return run.describe()
    require_extra("train", "matplotlib", "distillation")
    run.claim(resume=resume, force=force)
    try:
        return run.train(save_every, force=force)
    except InputError:
        if not resume:
            run.abandon()
        raise


def _tokens(
    stages: tuple[str, ...], tokens: int | None, given: Mapping[str, int]
) -> dict[str, int]:
    """Return the training tokens of each stage."""
    unused = sorted(set(given) - set(stages))
    if unused:
        raise InputError(f"tokens for {unused[0]}: --stages leaves that stage out")
    share = 1.0 if tokens is None else tokens / DEFAULT_TOKENS[stages[-1]]
    return {name: given.get(name, int(DEFAULT_TOKENS[name] * share)) for name in stages}


def _dtype_name(name: str, device: torch.device) -> str:
    """Return which dtype to compute in; half precision has too narrow a range for gradients."""
    if name == "float16":
        raise InputError("--dtype float16: choose float32 or bfloat16 for training")
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    dtype = choose_dtype(name, device)
    return str(dtype).removeprefix("torch.")
