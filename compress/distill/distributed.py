"""Training in several processes: FSDP2 sharding, gradient averaging and clipping.

``torchrun`` or ``accelerate launch`` starts the processes and sets their number in the environment.
FSDP2 (`torch.distributed.fsdp.fully_shard`) shards every mixer, which is most of a model. Each
process has a whole copy of embeddings, norms and heads, and trains on its part of every batch.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hybridize.compress.distill.pair import Pair

_TIMEOUT = timedelta(days=1)
"""Long enough for the first process to sample text and fill the teacher cache."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and the number of processes.

    Attributes:
        rank: the index of this process.
        size: the number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and messages."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: float) -> float:
        """Return the mean over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.size

    def own_part(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the part of a batch's sequence indices that this process trains on."""
        return indices[self.rank :: self.size]


def join(device: torch.device) -> Ranks:
    """Connect to the other processes of the run, if there are any."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend, timeout=_TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size())


def shard(pair: Pair, ranks: Ranks, device: torch.device) -> None:
    """Shard every mixer of both models over the processes.

    A mixer that student and teacher share stays shared.
    """
    if ranks.size == 1:
        return
    assert pair.teacher is not None
    mesh = init_device_mesh(device.type, (ranks.size,))
    blocks = zip(pair.student.model.blocks, pair.teacher.model.blocks, strict=True)
    for student_block, teacher_block in blocks:
        teacher_ids = {id(parameter) for parameter in teacher_block.mixer.parameters()}
        if all(id(parameter) in teacher_ids for parameter in student_block.mixer.parameters()):
            student_block.mixer = teacher_block.mixer
        else:
            fully_shard(student_block.mixer, mesh=mesh, reshard_after_forward=True)
        fully_shard(teacher_block.mixer, mesh=mesh, reshard_after_forward=True)


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Average the gradients of parameters that are not sharded. FSDP averages the others."""
    if ranks.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks.size


def clip_grad_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, ranks: Ranks
) -> torch.Tensor:
    """Scale all gradients so that their norm is at most ``max_norm``; return the norm before."""
    parameters = list(parameters)
    if ranks.size == 1:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    gradients = [p.grad for p in parameters if p.grad is not None]
    shards = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    square = sum((g.double().square().sum() for g in shards), torch.zeros((), dtype=torch.float64))
    dist.all_reduce(square)
    square = square + sum(g.double().square().sum() for g in whole)
    norm = square.sqrt()
    for gradient in (*shards, *whole):
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).to(gradient.dtype))
    return norm


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that may be sharded. All processes must call this."""
    whole = tensor.detach()
    return whole.full_tensor() if isinstance(whole, DTensor) else whole


def to_layout_of(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor on a parameter's device, sharded like the parameter."""
    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return whole
