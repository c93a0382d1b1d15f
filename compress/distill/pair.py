"""Load a student and its teacher, check that they match, and share their common tensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model, load_tokenizer
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.model_spec import ModelSpec

_PRUNED_HINT = "; a pruned model needs `stages=kl` and `train=all`"


@dataclass
class Pair:
    """A student and its teacher.

    Attributes:
        teacher: in evaluation mode and frozen; None when no remaining stage runs it.
        student: shares those frozen tensors with the teacher that are equal in both.
        swapped: indices of the blocks that are attention in the teacher and Mamba-2 in the student.
    """

    teacher: HybridForCausalLM | None
    student: HybridForCausalLM
    swapped: tuple[int, ...]

    def mixers(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the swapped blocks' mixers, by name."""
        prefixes = tuple(f"model.blocks.{index}.mixer." for index in self.swapped)
        return {
            name: parameter
            for name, parameter in self.student.named_parameters()
            if name.startswith(prefixes)
        }

    def parameters(self, train: str) -> dict[str, nn.Parameter]:
        """Return the parameters that the option ``train`` selects, by name."""
        return self.mixers() if train == "mixers" else dict(self.student.named_parameters())


def check_pair(student: Path, teacher: Path, *, any_shape: bool = False) -> tuple[int, ...]:
    """Check that a student can be trained by a teacher; return the indices of its swapped blocks.

    Reads configurations and tokenizers, no weights.

    Args:
        student, teacher: their directories.
        any_shape: whether the student may have other blocks or another hidden size, such as a
            pruned model. It then has no swapped blocks.

    Raises:
        InputError: the student and the teacher do not match.
    """
    with CheckpointReader(student) as reader:
        student_spec = read_config(reader)[1]
    with CheckpointReader(teacher) as reader:
        teacher_spec = read_config(reader)[1]
    for name in ("vocab_size", *(() if any_shape else ("hidden_size",))):
        ours, theirs = getattr(student_spec, name), getattr(teacher_spec, name)
        if ours != theirs:
            raise InputError(
                f"{student}: its {name} is {ours} and the teacher's is {theirs}; "
                "give the model that it was converted from as `teacher`"
                + (_PRUNED_HINT if name == "hidden_size" else "")
            )
    try:
        swapped = _find_swapped(student, student_spec, teacher_spec)
    except InputError:
        if not any_shape:
            raise
        swapped = ()
    if load_tokenizer(student).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise InputError(
            f"{student}: its tokenizer differs from the teacher's; both need the same vocabulary"
        )
    return swapped


def load_pair(
    student: Path,
    teacher: Path,
    swapped: tuple[int, ...],
    *,
    train: str,
    device: torch.device,
    dtype: torch.dtype,
    share: bool = True,
) -> Pair:
    """Load both models.

    Args:
        student, teacher: their directories.
        swapped: the indices of the student's blocks that replaced attention, see `check_pair`.
        train: ``mixers`` or ``all``.
        device: the device of both models.
        dtype: dtype of the computation. Trained parameters are always float32.
        share: whether the models may share frozen tensors that are equal in both.
    """
    teacher_model = load_model(teacher, dtype=dtype, device=device).requires_grad_(False)
    shared = {} if train == "all" or not share else dict(teacher_model.named_parameters())
    student_model = load_model(student, dtype=torch.float32, device=device, shared=shared)
    pair = Pair(teacher_model, student_model.requires_grad_(False), swapped)
    for parameter in pair.parameters(train).values():
        parameter.requires_grad_(True)
    return pair


def _find_swapped(
    student: Path, student_spec: ModelSpec, teacher_spec: ModelSpec
) -> tuple[int, ...]:
    """Return the indices of blocks that are attention in the teacher and Mamba-2 in the student.

    Raises:
        InputError: the models differ in other blocks.
    """
    if len(student_spec.blocks) != len(teacher_spec.blocks):
        raise InputError(
            f"{student}: has {len(student_spec.blocks)} blocks and the teacher "
            f"{len(teacher_spec.blocks)}; give the model that it was converted from as "
            f"`teacher`{_PRUNED_HINT}"
        )
    swapped = []
    blocks = zip(student_spec.blocks, teacher_spec.blocks, strict=True)
    for index, (ours, theirs) in enumerate(blocks):
        if isinstance(ours, MambaSizes) and isinstance(theirs, AttentionSizes):
            swapped.append(index)
        elif type(ours) is not type(theirs):
            raise InputError(
                f"{student}: block {index} is {student_spec.layout[index]} and the teacher's is "
                f"{teacher_spec.layout[index]}; only attention (*) can become Mamba-2 (M)"
            )
    return tuple(swapped)
