"""A student and its teacher, checked against each other, with what they share in memory once."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model, load_tokenizer
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model import HybridForCausalLM

_PRUNED = ", or train a pruned one with --stages kl --train all"


@dataclass
class Pair:
    """Two models over the same text.

    Attributes:
        teacher: in evaluation mode, nothing of it trains; None once nothing needs it.
        student: its frozen tensors that equal the teacher's are the teacher's.
        swapped: places where the teacher has attention and the student Mamba-2.
    """

    teacher: HybridForCausalLM | None
    student: HybridForCausalLM
    swapped: tuple[int, ...]

    def mixers(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the swapped blocks' mixers by their names."""
        prefixes = tuple(f"model.blocks.{index}.mixer." for index in self.swapped)
        return {
            name: parameter
            for name, parameter in self.student.named_parameters()
            if name.startswith(prefixes)
        }

    def parameters(self, train: str) -> dict[str, nn.Parameter]:
        """Return what ``--train`` means, by name."""
        return self.mixers() if train == "mixers" else dict(self.student.named_parameters())


def check_pair(student: Path, teacher: Path, *, any_shape: bool = False) -> tuple[int, ...]:
    """Check that a student can learn from a teacher; return the swapped blocks' places.

    Reads configurations and tokenizers, no weights.

    Args:
        student, teacher: their directories.
        any_shape: whether a student may have other blocks and another hidden size, as a pruned
            one has; its swapped blocks then are none.

    Raises:
        InputError: they do not match.
    """
    with CheckpointReader(student) as reader:
        ours = read_config(reader)[1]
    with CheckpointReader(teacher) as reader:
        theirs = read_config(reader)[1]
    for name in ("vocab_size", *(() if any_shape else ("hidden_size",))):
        mine, wanted = getattr(ours, name), getattr(theirs, name)
        if mine != wanted:
            raise InputError(
                f"{student}: its {name} is {mine} and the teacher's {wanted}; "
                "give the model that it was converted from as --teacher"
                + (_PRUNED if name == "hidden_size" else "")
            )
    try:
        swapped = _swapped(student, ours, theirs)
    except InputError:
        if not any_shape:
            raise
        swapped = ()
    if load_tokenizer(student).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise InputError(
            f"{student}: its tokenizer is not the teacher's; both have to read the same tokens"
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
        swapped: see `check_pair`.
        train: ``mixers`` or ``all``; what does not train is shared where it is the same.
        device: where to put them.
        dtype: what is computed in; what trains is loaded in float32 in any case.
        share: whether what does not train may be shared at all.
    """
    master = load_model(teacher, dtype=dtype, device=device).requires_grad_(False)
    shared = {} if train == "all" or not share else dict(master.named_parameters())
    learner = load_model(student, dtype=torch.float32, device=device, shared=shared)
    pair = Pair(master, learner.requires_grad_(False), swapped)
    for parameter in pair.parameters(train).values():
        parameter.requires_grad_(True)
    return pair


def _swapped(student: Path, ours: HybridConfig, theirs: HybridConfig) -> tuple[int, ...]:
    if len(ours.blocks) != len(theirs.blocks):
        raise InputError(
            f"{student}: has {len(ours.blocks)} blocks and the teacher {len(theirs.blocks)}; "
            f"give the model that it was converted from as --teacher{_PRUNED}"
        )
    swapped = []
    for index, (mine, wanted) in enumerate(zip(ours.blocks, theirs.blocks, strict=True)):
        if isinstance(mine, MambaSizes) and isinstance(wanted, AttentionSizes):
            swapped.append(index)
        elif type(mine) is not type(wanted):
            raise InputError(
                f"{student}: block {index} is {ours.layout[index]} and the teacher's "
                f"{theirs.layout[index]}; only attention (*) may have become Mamba-2 (M)"
            )
    return tuple(swapped)
