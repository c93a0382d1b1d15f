"""The state-space scan in one launch, its gradients in three, with states in registers.

The backward keeps the inputs alone, and finds the states of the chunks again.
"""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from hybridize.kernels.eager import ssd_scan as eager
from hybridize.kernels.triton import ssd_kernels as kernels
from hybridize.kernels.triton.launch import (
    INTERPRETED,
    accumulator,
    block,
    evenly_spaced,
    operand,
    operand_dtype,
    sequence_numbers,
    spacing,
    tuning,
    wide_dtype,
)

_WIDEST_DOUBLE = 2048
"""Elements of a float64 state that fit on a chip; wider ones, for checks, go through torch."""


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
    """See `hybridize.kernels.ssd_scan`."""
    if x.dtype == torch.float64 and block(x.shape[-1]) * block(B.shape[-1]) > _WIDEST_DOUBLE:
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
        sequence_numbers(seq_idx),
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
        call = _Call(x, B, dt_limit, chunk_size)
        x, dt, B, C = (evenly_spaced(t, dims) for t, dims in ((x, 2), (dt, 1), (B, 2), (C, 2)))
        A, (D, dt_bias, initial_state) = (
            A.contiguous(),
            (None if t is None else t.contiguous() for t in (D, dt_bias, initial_state)),
        )
        y = x.new_empty(x.shape)
        state = x.new_empty(call.state_shape, dtype=wide_dtype(x.dtype))
        rows = call.block_rows()
        grid = (call.batch * call.heads, triton.cdiv(call.head_dim, rows))
        with torch.cuda.device_of(x):
            kernels.scan_forward[grid](
                x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, y, state,
                *spacing(x), *spacing(dt), *spacing(B), *spacing(C),
                call.length, call.heads, call.per_group,
                BLOCK_P=rows, **call.constants, **call.scan_launch,
            )  # fmt: skip
        ctx.call = call
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, dstate: torch.Tensor) -> tuple[Any, ...]:
        x, dt, A, B, C, D, dt_bias, initial_state, seq_idx = ctx.saved_tensors
        call: _Call = ctx.call
        dy, dstate = evenly_spaced(dy, 2), dstate.contiguous()
        states = x.new_empty(
            (2, call.batch, call.heads, call.chunks, call.head_dim, call.d_state),
            dtype=operand_dtype(x.dtype),
        )
        before, after = states
        dinitial = x.new_empty(call.state_shape, dtype=wide_dtype(x.dtype))
        dx, ddt, dB, dC = (t.new_empty(t.shape) for t in (x, dt, B, C))
        sums = dinitial.new_empty(call.batch * call.chunks, 3, call.heads)
        rows = call.block_rows()
        walk = (call.batch * call.heads, triton.cdiv(call.head_dim, rows))
        sizes = (call.length, call.chunks, call.heads, call.per_group)
        with torch.cuda.device_of(x):
            for values, keys, known, saved, last, backward in (
                (x, B, initial_state, before, torch.empty_like(dinitial), False),
                (dy, C, dstate, after, dinitial, True),
            ):
                kernels.scan_states[walk](
                    values, dt, A, keys, dt_bias, known, seq_idx, saved, last,
                    *spacing(values), *spacing(dt), *spacing(keys), *sizes,
                    BACKWARD=backward, BLOCK_P=rows, **call.constants, **call.scan_launch,
                )  # fmt: skip
            kernels.scan_gradients[call.batch * call.chunks, B.shape[2]](
                x, dt, A, B, C, D, dt_bias, seq_idx, dy, before, after,
                dx, ddt, dB, dC, sums,
                *spacing(x), *spacing(dt), *spacing(B), *spacing(C),
                *spacing(dy), *sizes,
                BLOCK_P=block(call.head_dim), **call.constants, **call.gradient_launch,
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


class _Call:
    """Sizes and constants that all launches of one scan share."""

    def __init__(
        self,
        x: torch.Tensor,
        B: torch.Tensor,
        dt_limit: tuple[float, float],
        chunk_size: int | None,
    ) -> None:
        self.batch, self.length, self.heads, self.head_dim = x.shape
        self.d_state = B.shape[-1]
        self.per_group = self.heads // B.shape[2]
        self.state_shape = (self.batch, self.heads, self.head_dim, self.d_state)
        chosen = tuning(x.device)
        # Wider states, and float64, leave room for shorter chunks.
        room = chosen.chunk_size // (4 if x.dtype == torch.float64 else 1)
        chunk = chunk_size or max(16, room * 128 // max(128, block(self.d_state)))
        self.chunks = triton.cdiv(self.length, chunk)
        self.constants = {
            "P": self.head_dim,
            "N": self.d_state,
            "CHUNK": chunk,
            "LOW": float(dt_limit[0]),
            "HIGH": float(dt_limit[1]),
            "BLOCK_Q": block(chunk),
            "BLOCK_N": block(self.d_state),
            "ACC": accumulator(x.dtype),
            "DOT": operand(x.dtype),
            "PRECISION": chosen.precision,
        }
        stages = chosen.scan_stages if x.element_size() == 2 else 1
        self.scan_launch = {"num_warps": chosen.scan_warps, "num_stages": stages}
        self.gradient_launch = {
            "num_warps": chosen.gradient_warps,
            "num_stages": chosen.gradient_stages,
        }
        self._device = x.device

    def block_rows(self) -> int:
        """Return how many rows of a state a program has: fewer where heads alone are too few."""
        rows = block(self.head_dim)
        if INTERPRETED:
            return rows
        wanted = 2 * torch.cuda.get_device_properties(self._device).multi_processor_count
        while rows > 16 and self.batch * self.heads * triton.cdiv(self.head_dim, rows) < wanted:
            rows //= 2
        return rows
