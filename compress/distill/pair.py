"""Load a student and its teacher, check that they match, and share their common tensors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.header_reader import open_headers
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

    def checkpoint_activations(self) -> None:
        """Let the student recompute activations in the backward pass."""
        self.student.activation_checkpointing_enable()
        # transformers also makes the embeddings require gradients, which reentrant checkpoints
        # need. These are not reentrant, and the blocks before the first trained one would run
        # twice, and backward.
        self.student.disable_input_require_grads()
        self.student.train()

    def common_blocks(self) -> int:
        """Return the number of first blocks whose output is the same in both models.

        The embeddings and these blocks have the same settings, share all tensors, and are not
        trained. The blocks of a student that computes in FP8 never count.
        """
        if self.teacher is None:
            return 0
        ours, theirs = self.student.model, self.teacher.model
        names = ("embedding_multiplier", "rope_parameters", "_attn_implementation")
        same = all(getattr(ours.config, name) == getattr(theirs.config, name) for name in names)
        same = same and _compute_the_same(ours.embed_tokens, theirs.embed_tokens)
        if not same or not _compute_the_same(ours.rotary_emb, theirs.rotary_emb):
            return 0
        count = 0
        for mine, other in zip(ours.blocks, theirs.blocks, strict=False):
            if not _compute_the_same(mine, other):
                break
            count += 1
        return count


def check_pair(student: Path, teacher: str | Path, *, any_shape: bool = False) -> tuple[int, ...]:
    """Check that a student can be trained by a teacher; return the indices of its swapped blocks.

    Reads configurations and tokenizers, no weights.

    Args:
        student: its directory.
        teacher: its directory or hub id.
        any_shape: whether the student may have other blocks or another hidden size, such as a
            pruned model. It then has no swapped blocks.

    Raises:
        InputError: the student and the teacher do not match.
    """
    with CheckpointReader(student) as reader:
        student_spec = read_config(reader)[1]
    with open_headers(teacher) as reader:
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
    prepare: Callable[[HybridForCausalLM], None] = lambda _: None,
) -> Pair:
    """Load both models.

    Args:
        student, teacher: their directories.
        swapped: the indices of the student's blocks that replaced attention, see `check_pair`.
        train: ``mixers`` or ``all``.
        device: the device of both models.
        dtype: dtype of the computation. Trained parameters are always float32.
        share: whether the models may share frozen tensors that are equal in both.
        prepare: changes the classes of some of the student's modules.
    """
    teacher_model = load_model(teacher, dtype=dtype, device=device).requires_grad_(False)
    shared = {} if train == "all" or not share else dict(teacher_model.named_parameters())
    student_model = load_model(student, dtype=torch.float32, device=device, shared=shared)
    prepare(student_model)
    pair = Pair(teacher_model, student_model.requires_grad_(False), swapped)
    for parameter in pair.parameters(train).values():
        parameter.requires_grad_(True)
    return pair


_NO_SETTINGS = frozenset({"training", "config", "layer_idx", "gradient_checkpointing"})
"""Attributes of modules that may differ between modules that compute the same.

What a mixer reads from ``config`` is in its other attributes.
"""


def have_same_settings(ours: nn.Module, theirs: nn.Module) -> bool:
    """Return whether two modules would compute the same if they had the same tensors."""
    our_modules, their_modules = dict(ours.named_modules()), dict(theirs.named_modules())
    return our_modules.keys() == their_modules.keys() and all(
        _settings(module) == _settings(their_modules[name]) for name, module in our_modules.items()
    )


def _compute_the_same(ours: nn.Module | None, theirs: nn.Module | None) -> bool:
    """Return whether two modules share all frozen parameters and have the same settings."""
    if ours is None or theirs is None:
        return ours is theirs
    our_tensors, their_tensors = dict(ours.named_parameters()), dict(theirs.named_parameters())
    our_buffers, their_buffers = dict(ours.named_buffers()), dict(theirs.named_buffers())
    return (
        have_same_settings(ours, theirs)
        and our_tensors.keys() == their_tensors.keys()
        and our_buffers.keys() == their_buffers.keys()
        and all(p is their_tensors[n] and not p.requires_grad for n, p in our_tensors.items())
        and all(torch.equal(b, their_buffers[name]) for name, b in our_buffers.items())
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's class and its attributes, without tensors and submodules."""
    attributes = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _NO_SETTINGS
    }
    sizes = attributes.get("sizes")
    if isinstance(sizes, AttentionSizes):  # None means the default scale; `scaling` has the number
        attributes["sizes"] = replace(sizes, scale=None)
    return attributes | {"class": type(module)}


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
