"""How kernels are launched: what they compute in, and their fixed configurations.

Nothing is tuned at run time: one table says how every kernel runs on an architecture, so
that no call is slow because it is the first of its length.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret

_WIDTHS = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True)
class Tuning:
    """Warps and pipeline stages of the kernels on one architecture.

    Attributes:
        scan_warps, scan_stages: of the scan's forward, and of its walks over states; one stage
            for operands wider than 16 bits.
        gradient_warps, gradient_stages: of the scan's gradients, which keep more at hand.
        chunk_size: tokens of a chunk of the scan, for a state of up to 128; float64 has a quarter.
        rows: elements of a tile of a kernel that works row by row.
        precision: of products of float32 operands; ``tf32x3`` is as exact as float32.
    """

    scan_warps: int = 4
    scan_stages: int = 2
    gradient_warps: int = 8
    gradient_stages: int = 1
    chunk_size: int = 64
    rows: int = 2048
    precision: str = "tf32x3"


_TUNINGS = {
    9: Tuning(rows=4096),  # Hopper
    8: Tuning(),  # Ampere and Ada
}
_OTHERS = Tuning(scan_stages=1, chunk_size=32, precision="ieee")


def tuning(device: torch.device) -> Tuning:
    """Return the configuration for a device's architecture."""
    if device.type != "cuda" or torch.version.hip:
        return _OTHERS
    return _TUNINGS.get(torch.cuda.get_device_capability(device)[0], _OTHERS)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what is summed in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return `wide_dtype` as Triton has it."""
    return _WIDTHS[wide_dtype(dtype)]


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what goes into matrix products; the interpreter's are wrong in narrow dtypes."""
    return wide_dtype(dtype) if INTERPRETED else dtype


def operand(dtype: torch.dtype) -> tl.dtype:
    """Return `operand_dtype` as Triton has it."""
    return _WIDTHS[operand_dtype(dtype)]


def block(size: int) -> int:
    """Return the side of a tile that holds ``size``: matrix products want 16 at least."""
    return max(16, triton.next_power_of_2(size))


def inner_contiguous(tensor: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """Return the tensor with its last dimensions laid out in one piece; a copy only if need be."""
    expected = 1
    for size, stride in zip(tensor.shape[::-1][:dims], tensor.stride()[::-1][:dims], strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def evenly_spaced(tensor: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """Do `inner_contiguous` for ``(batch, length, …)``, with whole tokens between rows too."""
    tensor = inner_contiguous(tensor, dims)
    (batch, length), (over, along) = tensor.shape[:2], tensor.stride()[:2]
    even = batch == 1 or length == 1 or (along > 0 and over % along == 0)
    return tensor if even else tensor.contiguous()


def spacing(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the tokens from one batch row of `evenly_spaced` to the next, and a token's elements.

    Only the former depends on the length.
    """
    over, along = tensor.stride()[:2]
    if tensor.shape[1] == 1:  # nothing is stepped over along the length: its stride may be any
        return 1, over
    return (0 if tensor.shape[0] == 1 else over // along), along


def flat_rows(x: torch.Tensor) -> torch.Tensor:
    """Return ``(..., width)`` as ``(rows, width)`` whose rows lie in one piece each."""
    return inner_contiguous(x.reshape(-1, x.shape[-1]))


def wants_gradient(*tensors: torch.Tensor | None) -> bool:
    """Return whether autograd would record an operation on these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def sequence_numbers(seq_idx: torch.Tensor | None) -> torch.Tensor | None:
    """Count packed sequences: 0 for a row's first; a number that comes again is a new one."""
    if seq_idx is None:
        return None
    changes = seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0
    return changes.cumsum(1, dtype=torch.int32)
