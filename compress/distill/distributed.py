"""Training in several processes: who they are, gradient averaging and clipping.

``torchrun`` or ``accelerate launch`` starts the processes and sets their number in the environment.
Each process has a part of all matrices (`sharded_pair`), and trains on its part of every batch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from typing_extensions import override

from hybridize.errors import HybridizeError

_Value = TypeVar("_Value")

_TIMEOUT = timedelta(days=1)
"""Long enough for the first process to sample text and fill the teacher cache."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and the number of processes.

    Attributes:
        rank: the index of this process.
        size: the number of processes.
        mesh: all processes in one dimension; None for a single process.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

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

    def largest(self, value: int) -> int:
        """Return the largest of the values of all processes."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def on_first(self, function: Callable[[], None]) -> None:
        """Call a function in the first process, while the others wait for its end.

        Raises:
            HybridizeError: the function's, in all processes.
        """
        if self.size == 1:
            return function()
        error: HybridizeError | None = None
        if self.first:
            try:
                function()
            except HybridizeError as failure:
                error = failure
        error = self.same(error)
        if error is not None:
            raise error
        return None

    def own_rows(self, rows: int) -> slice:
        """Return the rows of a matrix that this process has, as FSDP2 divides them."""
        per_process = -(-rows // self.size)
        start = min(self.rank * per_process, rows)
        return slice(start, min(start + per_process, rows))

    def all_agree(self, answers: list[bool]) -> list[bool]:
        """Return which of the answers are true in all processes."""
        if self.size == 1:
            return answers
        combined = torch.tensor(answers, dtype=torch.int32)
        dist.all_reduce(combined, dist.ReduceOp.MIN)
        return [bool(answer) for answer in combined]

    def same(self, value: _Value) -> _Value:
        """Return the value of the first process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: _Value) -> list[_Value]:
        """Return the values of all processes."""
        if self.size == 1:
            return [value]
        values: list[_Value] = [value] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()
"""A run of one process."""


def join(device: torch.device) -> Ranks:
    """Connect to the other processes of the run, if there are any."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend, timeout=_TIMEOUT)
    mesh = init_device_mesh(device.type, (size,))
    return Ranks(dist.get_rank(), dist.get_world_size(), mesh)


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Average the gradients of parameters that are not sharded; the others are averages already."""
    if ranks.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks.size


def reduce_gradients(model: nn.Module, enabled: bool, ranks: Ranks) -> None:
    """Set whether the next backward passes exchange the gradients of sharded modules.

    Otherwise each process adds up whole gradients, in float32, until a pass exchanges them. Weights
    from `whole_weight` exchange theirs in every pass.
    """
    if ranks.size == 1:
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(enabled, recurse=False)


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


class WholeParameters(Mapping[str, torch.Tensor]):
    """Parameters that may be sharded. Looking one up gathers it, and no other.

    All processes must look up the same names in the same order.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters

    @override
    def __getitem__(self, name: str) -> torch.Tensor:
        found = self._parameters[name].detach()
        return found.full_tensor() if isinstance(found, DTensor) else found

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    @override
    def __len__(self) -> int:
        return len(self._parameters)
