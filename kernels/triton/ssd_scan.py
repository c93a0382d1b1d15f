"""The SSD scan in one launch forward and three backward, with the states in registers.

The backward pass saves only the inputs, and recomputes the state before each chunk.
"""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from hybridize.kernels.eager import ssd_scan as eager
from hybridize.kernels.reference.packed_sequences import number_sequences
from hybridize.kernels.triton import ssd_kernels as kernels
from hybridize.kernels.triton.launch import (
    INTERPRETED,
    accumulator,
    block_size,
    evenly_spaced,
    operand,
    operand_dtype,
    spacing,
    tuning,
    wide_dtype,
)

_MAX_FLOAT64_STATE = 2048
"""Elements of a float64 state that fit into registers. Larger states run as eager code."""


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.ssd_scan`."""
    if (
        x.dtype == torch.float64
        and block_size(x.shape[-1]) * block_size(B.shape[-1]) > _MAX_FLOAT64_STATE
    ):
        return eager.ssd_scan(
            x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
            initial_state=initial_state, seq_idx=seq_idx, chunk_size=chunk_size,
        )  # fmt: skip
    y, state = _Scan.apply(
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias,
        initial_state,
        None if seq_idx is None else number_sequences(seq_idx),
        dt_limit,
        chunk_size,
    )
    return y, state


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        initial_state: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
        dt_limit: tuple[float, float],
        chunk_size: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        launch = _ScanLaunch(x, B, dt_limit, chunk_size)
        x, dt, B, C = (evenly_spaced(t, dims) for t, dims in ((x, 2), (dt, 1), (B, 2), (C, 2)))
        A = A.contiguous()
        D, dt_bias, initial_state = (
            None if t is None else t.contiguous() for t in (D, dt_bias, initial_state)
        )
        y = x.new_empty(x.shape)
        state = x.new_empty(launch.state_shape, dtype=wide_dtype(x.dtype))
        rows = launch.rows_per_program()
        grid = (launch.batch * launch.heads, triton.cdiv(launch.head_dim, rows))
        with torch.cuda.device_of(x):
            kernels.scan_forward[grid](
                x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, y, state,
                *spacing(x), *spacing(dt), *spacing(B), *spacing(C),
                launch.length, launch.heads, launch.heads_per_group,
                BP=rows, **launch.constants, **launch.scan_options,
            )  # fmt: skip
        ctx.launch = launch
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, dstate: torch.Tensor) -> tuple[Any, ...]:
        x, dt, A, B, C, D, dt_bias, initial_state, seq_idx = ctx.saved_tensors
        launch: _ScanLaunch = ctx.launch
        dy, dstate = evenly_spaced(dy, 2), dstate.contiguous()
        states, dstates = x.new_empty(
            (2, launch.batch, launch.heads, launch.chunks, launch.head_dim, launch.d_state),
            dtype=operand_dtype(x.dtype),
        )
        dinitial = x.new_empty(launch.state_shape, dtype=wide_dtype(x.dtype))
        dx, ddt, dB, dC = (t.new_empty(t.shape) for t in (x, dt, B, C))
        sums = dinitial.new_empty(launch.batch * launch.chunks, 3, launch.heads)
        rows = launch.rows_per_program()
        grid = (launch.batch * launch.heads, triton.cdiv(launch.head_dim, rows))
        sizes = (launch.length, launch.chunks, launch.heads, launch.heads_per_group)
        with torch.cuda.device_of(x):
            for x_or_dy, B_or_C, first, saved, last, backward in (
                (x, B, initial_state, states, torch.empty_like(dinitial), False),
                (dy, C, dstate, dstates, dinitial, True),
            ):
                kernels.scan_states[grid](
                    x_or_dy, dt, A, B_or_C, dt_bias, first, seq_idx, saved, last,
                    *spacing(x_or_dy), *spacing(dt), *spacing(B_or_C), *sizes,
                    BACKWARD=backward, BP=rows, **launch.constants, **launch.scan_options,
                )  # fmt: skip
            kernels.scan_gradients[launch.batch * launch.chunks, B.shape[2]](
                x, dt, A, B, C, D, dt_bias, seq_idx, dy, states, dstates,
                dx, ddt, dB, dC, sums,
                *spacing(x), *spacing(dt), *spacing(B), *spacing(C),
                *spacing(dy), *sizes,
                BP=block_size(launch.head_dim), **launch.constants, **launch.gradient_options,
            )  # fmt: skip
        dA, dbias, dD = sums.sum(0)
        return (
            dx,
            ddt,
            dA.to(A.dtype),
            dB,
            dC,
            None if D is None else dD.to(D.dtype),
            None if dt_bias is None else dbias.to(dt_bias.dtype),
            None if initial_state is None else dinitial.to(initial_state.dtype),
            None,
            None,
            None,
        )


class _ScanLaunch:
    """Sizes and constants that all launches of a scan share."""

    def __init__(
        self,
        x: torch.Tensor,
        B: torch.Tensor,
        dt_limit: tuple[float, float],
        chunk_size: int | None,
    ) -> None:
        self.batch, self.length, self.heads, self.head_dim = x.shape
        self.d_state = B.shape[-1]
        self.heads_per_group = self.heads // B.shape[2]
        self.state_shape = (self.batch, self.heads, self.head_dim, self.d_state)
        tuned = tuning(x.device)
        # Larger states and float64 leave fewer registers, so chunks must be shorter.
        max_chunk = tuned.chunk_size // (4 if x.dtype == torch.float64 else 1)
        chunk = chunk_size or max(16, max_chunk * 128 // max(128, block_size(self.d_state)))
        self.chunks = triton.cdiv(self.length, chunk)
        self.constants = {
            "P": self.head_dim,
            "N": self.d_state,
            "CHUNK": chunk,
            "LOW": float(dt_limit[0]),
            "HIGH": float(dt_limit[1]),
            "BT": block_size(chunk),
            "BN": block_size(self.d_state),
            "ACC": accumulator(x.dtype),
            "DOT": operand(x.dtype),
            "PRECISION": tuned.precision,
        }
        stages = tuned.scan_stages if x.element_size() == 2 else 1
        self.scan_options = {"num_warps": tuned.scan_warps, "num_stages": stages}
        self.gradient_options = {
            "num_warps": tuned.gradient_warps,
            "num_stages": tuned.gradient_stages,
        }
        self._device = x.device

    def rows_per_program(self) -> int:
        """Return the rows of a state per program; fewer if there are too few heads for the GPU."""
        rows = block_size(self.head_dim)
        if INTERPRETED:
            return rows
        programs = 2 * torch.cuda.get_device_properties(self._device).multi_processor_count
        while rows > 16 and self.batch * self.heads * triton.cdiv(self.head_dim, rows) < programs:
            rows //= 2
        return rows
