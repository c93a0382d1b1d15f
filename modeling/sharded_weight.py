"""The whole of a weight whose rows are spread over several processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def whole_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as one tensor. All processes that share it must call this.

    Under autocast it is gathered in autocast's dtype. The gradient of the result is averaged over
    the processes, in float32, and each process gets that of its rows.

    Args:
        weight: a DTensor that is sharded by rows in equal parts (the last may be smaller), or an
            ordinary tensor, which is returned as it is.
    """
    if not hasattr(weight, "device_mesh"):  # importing DTensor takes time
        return weight
    own: torch.Tensor = weight.to_local()  # type: ignore[attr-defined]
    device = own.device.type
    if torch.is_autocast_enabled(device):
        own = own.to(torch.get_autocast_dtype(device))
    whole: torch.Tensor = _Gather.apply(own, weight.device_mesh.get_group(), len(weight))
    return whole


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; average the gradients and return those of own rows."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: "ProcessGroup", rows: int) -> torch.Tensor:
        size = group.size()
        per_process = -(-rows // size)
        ctx.group, ctx.own_rows, ctx.per_process = group, len(own), per_process
        result = own.new_empty(size * per_process, *own.shape[1:])
        _collective("all_gather")(result, _padded(own, per_process), group=group)
        return result[:rows]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        size = ctx.group.size()
        padded = _padded(grad.float(), size * ctx.per_process)
        own = padded.new_empty(ctx.per_process, *grad.shape[1:])
        _collective("reduce_scatter")(own, padded, group=ctx.group)
        return (own[: ctx.own_rows] / size).to(grad.dtype), None, None


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the rows with zeros behind them, ``count`` in all."""
    if len(rows) == count:
        return rows.contiguous()
    result = rows.new_zeros(count, *rows.shape[1:])
    result[: len(rows)] = rows
    return result


def _collective(kind: str) -> Callable[..., Any]:
    """Return the collective operation on one tensor, under its name in this version of torch."""
    earlier = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}
    found: Callable[..., Any] | None = getattr(torch.distributed, f"{kind}_single", None)
    return found or getattr(torch.distributed, earlier[kind])
