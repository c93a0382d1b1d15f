"""More than one process: what each holds, and what they tell each other.

Started by ``torchrun`` or ``accelerate launch``, whose environment says how many there are. Every
mixer, which is nearly all of a model, is sharded with FSDP2 (`torch.distributed.fsdp.fully_shard`);
embeddings, norms and heads are held whole. Each process learns from its part of a batch.
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

_PATIENCE = timedelta(days=1)
"""For the first process, which samples text and asks the teacher while the others wait."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: this one's number.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and messages."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: float) -> float:
        """Return the mean over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.size

    def mine(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a batch's rows."""
        return rows[self.rank :: self.size]


def join(device: torch.device) -> Ranks:
    """Join the other processes that were started with this one, if there are any."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if not dist.is_initialized():
        both = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(both, timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size())


def shard(pair: Pair, ranks: Ranks, device: torch.device) -> None:
    """Leave each process its part of every mixer of both models.

    Mixers that student and teacher share stay shared.
    """
    if ranks.size == 1:
        return
    assert pair.teacher is not None
    mesh = init_device_mesh(device.type, (ranks.size,))
    for mine, theirs in zip(pair.student.model.blocks, pair.teacher.model.blocks, strict=True):
        known = {id(parameter) for parameter in theirs.mixer.parameters()}
        if all(id(parameter) in known for parameter in mine.mixer.parameters()):
            mine.mixer = theirs.mixer
        else:
            fully_shard(mine.mixer, mesh=mesh, reshard_after_forward=True)
        fully_shard(theirs.mixer, mesh=mesh, reshard_after_forward=True)


def average(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Average the gradients that FSDP does not: those of what every process holds whole."""
    if ranks.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks.size


def clip(parameters: Iterable[nn.Parameter], limit: float, ranks: Ranks) -> torch.Tensor:
    """Scale all gradients so that their norm is at most ``limit``; return what it was."""
    parameters = list(parameters)
    if ranks.size == 1:
        return nn.utils.clip_grad_norm_(parameters, limit)
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    square = sum((g.double().square().sum() for g in parts), torch.zeros((), dtype=torch.float64))
    dist.all_reduce(square)
    square = square + sum(g.double().square().sum() for g in whole)
    norm = square.sqrt()
    for gradient in (*parts, *whole):
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0).to(gradient.dtype))
    return norm


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that may be sharded; all processes have to ask."""
    whole = tensor.detach()
    return whole.full_tensor() if isinstance(whole, DTensor) else whole


def like(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor as a parameter is laid out, on its device."""
    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return whole
