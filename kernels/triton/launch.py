"""How kernels are launched: their dtypes, operand layouts and fixed configurations.

Nothing is tuned at run time. One table configures all kernels for an architecture, so the first
call with a new length is as fast as any other.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret

_TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True)
class Tuning:
    """The configuration of the kernels on one architecture.

    Attributes:
        scan_warps, scan_stages: warps and pipeline stages of `scan_forward` and `scan_states`.
            Operands wider than 16 bits always get one stage.
        gradient_warps, gradient_stages: warps and stages of `scan_gradients`, which needs more
            registers.
        chunk_size: tokens per chunk of the scan for a ``d_state`` of up to 128. Float64 gets a
            quarter of it.
        row_block: elements per block in kernels that process whole rows.
        precision: precision of products of float32 matrices; ``tf32x3`` is as exact as float32.
    """

    scan_warps: int = 4
    scan_stages: int = 2
    gradient_warps: int = 8
    gradient_stages: int = 1
    chunk_size: int = 64
    row_block: int = 2048
    precision: str = "tf32x3"


_TUNINGS = {
    9: Tuning(row_block=4096),  # Hopper
    8: Tuning(),  # Ampere and Ada
}
_OTHER_DEVICES = Tuning(scan_stages=1, chunk_size=32, precision="ieee")


def tuning(device: torch.device) -> Tuning:
    """Return the configuration for a device's architecture."""
    if device.type != "cuda" or torch.version.hip:
        return _OTHER_DEVICES
    return _TUNINGS.get(torch.cuda.get_device_capability(device)[0], _OTHER_DEVICES)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return `wide_dtype` as a Triton dtype."""
    return _TRITON_DTYPES[wide_dtype(dtype)]


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of matrix operands; Triton's interpreter needs float32 or wider."""
    return wide_dtype(dtype) if INTERPRETED else dtype


def operand(dtype: torch.dtype) -> tl.dtype:
    """Return `operand_dtype` as a Triton dtype."""
    return _TRITON_DTYPES[operand_dtype(dtype)]


def block_size(size: int) -> int:
    """Return the size of a block of at least ``size``; matrix products need at least 16."""
    return max(16, triton.next_power_of_2(size))


def norm_warps(group_size: int) -> int:
    """Return how many warps a norm needs to keep a group of channels in registers."""
    return min(16, max(4, triton.next_power_of_2(group_size) // 512))


def inner_contiguous(tensor: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """Return the tensor with its last dimensions contiguous; copy it only if necessary."""
    expected = 1
    for size, stride in zip(tensor.shape[::-1][:dims], tensor.stride()[::-1][:dims], strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def evenly_spaced(tensor: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """Return ``(batch, length, …)`` with its last dimensions contiguous and `spacing` defined.

    The distance between two sequences is then a whole number of tokens. Copies only if necessary.
    """
    tensor = inner_contiguous(tensor, dims)
    (batch, length), (batch_stride, token_stride) = tensor.shape[:2], tensor.stride()[:2]
    even = batch == 1 or length == 1 or (token_stride > 0 and batch_stride % token_stride == 0)
    return tensor if even else tensor.contiguous()


def spacing(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the strides of an `evenly_spaced` tensor.

    The first is the distance between two sequences in tokens, and depends on the length. The second
    is the distance between two tokens in elements, and does not.
    """
    batch_stride, token_stride = tensor.stride()[:2]
    if tensor.shape[1] == 1:  # with one token, the stride along the length has no meaning
        return 1, batch_stride
    return (0 if tensor.shape[0] == 1 else batch_stride // token_stride), token_stride


def flat_rows(x: torch.Tensor) -> torch.Tensor:
    """Return ``(..., width)`` as ``(rows, width)`` with contiguous rows."""
    return inner_contiguous(x.reshape(-1, x.shape[-1]))


def wants_gradient(*tensors: torch.Tensor | None) -> bool:
    """Return whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
