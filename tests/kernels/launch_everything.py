"""Launch every kernel of the operations as on a Hopper GPU; needs no GPU.

Only scripts in their own process import it, without TRITON_INTERPRET: the tests interpret kernels.
"""

from collections.abc import Callable

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from hybridize.kernels.triton import (
    activation,
    conv,
    fp8,
    launch,
    linear_kl,
    mamba2_step,
    norm,
    ssd_scan,
    ssd_step,
)

HOPPER = GPUTarget("cuda", 90, 32)


def intercept(run: Callable[..., None]) -> None:
    """Replace every launch by a call of ``run(kernel, *args, grid, warmup, **named)``."""
    JITFunction.run = run
    launch.tuning = ssd_scan.tuning = norm.tuning = lambda device: launch._TUNINGS[9]
    ssd_scan._ScanLaunch.rows_per_program = lambda launch: 64


def launch_all(dtype: torch.dtype, length: int, heads: int) -> None:
    """Run every operation forward and backward, with packed sequences and all options.

    Heads have 64 channels. Operands are slices of a projection, as in a model.
    """

    def leaf(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    inner, d_state = 64 * heads, 128
    channels = inner + 2 * d_state
    projected, state = leaf(2, length, inner + channels + heads), leaf(2, heads, 64, d_state)
    gate, mixed, dt = projected.split([inner, channels, heads], -1)
    weight, bias, conv_state = leaf(channels, 4), leaf(channels), leaf(2, 3, channels)
    seq_idx = torch.zeros(2, length, dtype=torch.int64)
    scalars, A = {"D": leaf(heads), "dt_bias": leaf(heads)}, leaf(heads)
    y, _ = conv.causal_conv1d(mixed, weight, bias, conv_state=conv_state, seq_idx=seq_idx)
    y.sum().backward()
    x, B, C = mixed.split([inner, d_state, d_state], -1)
    operands = x.unflatten(-1, (heads, 64)), dt, A, B[:, :, None], C[:, :, None]
    y, last = ssd_scan.ssd_scan(*operands, **scalars, seq_idx=seq_idx, initial_state=state)
    torch.autograd.backward([y, last], [y.detach(), last.detach()])
    y = y.detach().flatten(2).requires_grad_()
    norm.rms_norm(y, leaf(inner), 1e-5).sum().backward()
    for first in (False, True):
        norm.gated_rms_norm(
            y, gate, leaf(inner), 1e-5, group_size=inner // 2, norm_before_gate=first
        ).sum().backward()
    activation.swiglu(gate, y).sum().backward()
    activation.squared_relu(y).sum().backward()
    hidden, vocab = leaf(length, 8), leaf(64, 8)
    linear_kl.linear_kl_divergence(
        hidden, vocab, hidden.detach(), vocab.detach(), label_weight=0.5,
        labels=torch.zeros(length, dtype=torch.int64),
        mask=torch.ones(length, dtype=torch.bool),
    )  # fmt: skip
    with torch.no_grad():
        _launch_fp8(y, leaf(256))
        token, ssm_state = projected[:, 0].contiguous(), state.float()
        _, mixed, dt = token.split([inner, channels, heads], -1)
        x, B, C = mixed.split([inner, d_state, d_state], -1)
        conv.causal_conv1d_step(mixed, conv_state, weight, bias)
        ssd_step.ssd_step(
            ssm_state, x.unflatten(-1, (heads, 64)), dt, A, B[:, None], C[:, None], **scalars
        )
        mamba2_step.mamba2_step(
            token, conv_state, ssm_state, weight, bias, A, A, A, leaf(inner), 1e-5, group_size=inner
        )


def _launch_fp8(x: torch.Tensor, bias: torch.Tensor) -> None:
    fp8._has_fp8_conversion = lambda device: False
    for number in (torch.float8_e4m3fn, torch.float8_e5m2):  # each has its own rounding
        fp8.fp8_quantize(x, "row", dtype=number)
    fp8._has_fp8_conversion = lambda device: True
    fp8.fp8_quantize(x, "row", dtype=torch.float8_e5m2)
    for granularity in ("tensor", "row", "group", "block"):
        fp8.fp8_quantize(x, granularity)
    fp8.fp8_quantize(x.new_zeros(4, 16384), "row")
    blocks = (x.shape[-1] + 127) // 128
    weight = torch.zeros(256, x.shape[-1]).to(torch.float8_e4m3fn)
    fp8.fp8_linear(x, weight, torch.ones(2, blocks), bias, activations="group")
    fp8.fp8_linear(x[:, :1], weight, torch.ones(2, blocks), bias, activations="group")
