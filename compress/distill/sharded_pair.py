"""Load a student and its teacher in several processes, each of which reads only its own rows.

FSDP2 (`torch.distributed.fsdp.fully_shard`) shards the mixers and the embeddings. It gathers the
weights of a module before the module runs, in the dtype of the computation. The head is sharded
too, but its weight is used outside of a module's forward pass, so `whole_weight` gathers it. Every
process has a whole copy of all vectors, such as the weights of norms.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import model_on_meta
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.compress.distill.distributed import Ranks
from hybridize.compress.distill.pair import Pair, have_same_settings
from hybridize.console import console
from hybridize.modeling.materialize import compute_rope
from hybridize.modeling.model import HybridForCausalLM
from hybridize.progress import Progress

Values = dict[str, torch.Tensor]
"""What this process has of a model's parameters: its rows of matrices, and whole vectors."""


def load_sharded_pair(
    student: Path,
    teacher: Path,
    swapped: tuple[int, ...],
    *,
    train: str,
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks,
    share: bool = True,
    prepare: Callable[[HybridForCausalLM], None] = lambda _: None,
) -> Pair:
    """Load both models. All processes must call this.

    Args:
        student, teacher, swapped, train, device, dtype, share: see `pair.load_pair`.
        ranks: the processes.
        prepare: changes the classes of some of the student's modules.
    """
    # FSDP2 warns of operations in place on the outputs of mixers; blocks add them out of place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    with ExitStack() as stack:
        theirs, ours = (
            _Source(stack.enter_context(CheckpointReader(path)), kept, dtype, device, ranks)
            for path, kept in ((teacher, dtype), (student, torch.float32))
        )
        prepare(ours.model)
        theirs.progress = ours.progress = stack.enter_context(
            console.progress("loading", theirs.numel + ours.numel, "parameters")
        )
        their_values = theirs.read(theirs.parts)
        if train == "all" or not share:
            shared, our_values = list[str](), ours.read(ours.parts)
        else:
            shared, our_values = _read_different(ours, theirs, their_values, ranks)
    for part in shared:
        ours.model.set_submodule(part, theirs.model.get_submodule(part))
    theirs.finish(their_values)
    ours.finish(our_values)
    pair = Pair(theirs.model, ours.model, swapped)
    for parameter in pair.parameters(train).values():
        parameter.requires_grad_(True)
    return pair


class _Source:
    """A checkpoint and its model, which is on the meta device until `finish`.

    Args:
        reader: the checkpoint.
        dtype: the dtype of its parameters in memory.
        compute_dtype: the dtype in which FSDP2 gathers them.
        device, ranks: see `load_sharded_pair`.

    Attributes:
        model: the model.
        parts: the parameter names of every mixer and of every other module, by the module's name.
        numel: the number of parameters.
        progress: counts the parameters that were read.
    """

    progress: Progress

    def __init__(
        self,
        reader: CheckpointReader,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        format_, spec = read_config(reader, quantized=True)
        self._tensors = CheckpointTensors(reader, format_, spec)
        self._dtype, self._device, self._ranks = dtype, device, ranks
        self._policy = MixedPrecisionPolicy(
            param_dtype=compute_dtype,
            reduce_dtype=torch.float32,
            output_dtype=dtype,  # the residual stream keeps it
            cast_forward_inputs=False,  # autocast casts them
        )
        self.model = model_on_meta(
            self._tensors, spec, lambda name: _frozen(self._tensors.get(name)), device
        )
        self._shapes = {n: p.shape for n, p in self.model.named_parameters() if p.is_meta}
        self.numel = sum(shape.numel() for shape in self._shapes.values())
        self.parts: dict[str, list[str]] = {}
        for name in self._shapes:
            self.parts.setdefault(_part_of(name), []).append(name)

    def read(self, parts: Iterable[str]) -> Values:
        """Read what this process has of some parts."""
        values: Values = {}
        for name in (name for part in parts for name in self.parts[part]):
            shape = self._shapes[name]
            if len(shape) > 1:
                value = self._tensors.rows(name, self._ranks.own_rows(shape[0]))
            else:
                value = self._tensors.get(name)
            values[name] = value.to(self._device, self._dtype)
            self.progress.advance(shape.numel())
        return values

    def finish(self, values: Values) -> None:
        """Shard the modules that are not sharded yet, and give them their values."""
        for block in self.model.model.blocks:
            self._shard(block.mixer)
        self._shard(self.model.model.embed_tokens)
        for name in values:
            owner, _, leaf = name.rpartition(".")
            value, shape = values[name], self._shapes[name]
            if len(shape) > 1:
                value = DTensor.from_local(
                    value,
                    self._ranks.mesh,
                    [Shard(0)],
                    run_check=False,
                    shape=shape,
                    stride=torch.empty(shape, device="meta").stride(),
                )
            setattr(self.model.get_submodule(owner), leaf, _frozen(value))
        if self.model.config.tie_word_embeddings:
            self.model.lm_head.weight = self.model.model.embed_tokens.weight
        compute_rope(self.model, self._device)
        self.model.eval()

    def _shard(self, module: nn.Module) -> None:
        if isinstance(module, FSDPModule):  # the teacher's, which the student shares
            return
        fully_shard(
            module,
            mesh=self._ranks.mesh,
            reshard_after_forward=True,
            mp_policy=self._policy,
            ignored_params={p for p in module.parameters() if p.ndim < 2},
        )


def _read_different(
    ours: _Source, theirs: _Source, their_values: Values, ranks: Ranks
) -> tuple[list[str], Values]:
    """Read the student's parts that differ from the teacher's; return the others' names, and them.

    A part is shared if its rows are equal in all processes, rounded to the teacher's dtype.
    """
    equal, values = list[bool](), Values()
    for part, names in ours.parts.items():
        same = theirs.parts.get(part) == names and have_same_settings(
            ours.model.get_submodule(part), theirs.model.get_submodule(part)
        )
        if same:
            read = ours.read([part])
            same = all(
                torch.equal(read[name].to(their_values[name].dtype), their_values[name])
                for name in names
            )
            if not same:
                values |= read
        else:
            values |= ours.read([part])
        equal.append(same)
    agreed = ranks.all_agree(equal)
    shared = [part for part, in_all in zip(ours.parts, agreed, strict=True) if in_all]
    # Equal here, but not in another process:
    again = [
        part
        for part, here, in_all in zip(ours.parts, equal, agreed, strict=True)
        if here and not in_all
    ]
    return shared, values | ours.read(again)


def _part_of(name: str) -> str:
    """Return the module that is shared or not as a whole: a mixer, or the owner of a parameter."""
    before, mixer, _ = name.partition(".mixer.")
    return before + ".mixer" if mixer else name.rpartition(".")[0]


def _frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
