"""Compiles for a Hopper GPU, with none at hand, every kernel that the operations launch.

Run in a process of its own, as the other tests interpret their kernels. Prints one line a kernel.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
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

_POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1", torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip


def compile_only(kernel: JITFunction, *args: object, grid: object, warmup: bool, **named: object):
    """Do what a launch does up to the launch."""
    del grid, warmup
    options = {k: named.pop(k) for k in ("num_warps", "num_stages") if k in named}
    values = dict(zip(kernel.arg_names, args, strict=False)) | named
    constant = {p.name for p in kernel.params if p.is_constexpr}
    constant |= {name for name, value in values.items() if value is None}
    signature = {}
    for name in kernel.arg_names:
        value = values[name]
        if name in constant:
            signature[name] = "constexpr"
        else:
            signature[name] = _POINTERS[value.dtype] if torch.is_tensor(value) else "i32"
    constants = {(kernel.arg_names.index(name),): values[name] for name in constant}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
        or (signature[name] == "i32" and values[name] % 16 == 0
            and not kernel.params[place].do_not_specialize)
    }  # fmt: skip
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(kernel.fn.__name__, len(compiled.asm["cubin"]), compiled.metadata.shared, sep="\t")
    if compiled.metadata.shared > 227 << 10:
        sys.exit(f"{kernel.fn.__name__}: {compiled.metadata.shared} bytes of shared memory")


def main(dtype: torch.dtype) -> None:
    """Launch everything once, at the sizes of an 8B Nemotron-H, packed and with all options."""
    JITFunction.run = compile_only
    launch.tuning = ssd_scan.tuning = norm.tuning = lambda device: launch._TUNINGS[9]
    ssd_scan._Call.block_rows = lambda call: 64

    def leaf(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    index = torch.zeros(1, 64, dtype=torch.int64)
    scalars = {name: leaf(16) for name in ("D", "dt_bias")}
    operands = (
        leaf(1, 64, 16, 64),
        leaf(1, 64, 16),
        leaf(16),
        leaf(1, 64, 1, 128),
        leaf(1, 64, 1, 128),
    )
    y, state = ssd_scan.ssd_scan(
        *operands, **scalars, seq_idx=index, initial_state=leaf(1, 16, 64, 128)
    )
    torch.autograd.backward([y, state], [y.detach(), state.detach()])
    x, weight, bias, window = leaf(1, 64, 256), leaf(256, 4), leaf(256), leaf(1, 3, 256)
    conv.causal_conv1d(x, weight, bias, window=window, seq_idx=index)[0].sum().backward()
    norm.rms_norm(x, bias, 1e-5).sum().backward()
    for first in (False, True):
        gated = norm.gated_rms_norm(x, x, bias, 1e-5, group_size=128, norm_before_gate=first)
        gated.sum().backward()
    activation.swiglu(x, x).sum().backward()
    activation.squared_relu(x).sum().backward()
    for converts in (False, True):
        fp8._converts = lambda device, converts=converts: converts
        for number in (torch.float8_e4m3fn, torch.float8_e5m2):
            for granularity in ("tensor", "row", "group", "block"):
                fp8.fp8_quantize(x.detach(), granularity, dtype=number)
        fp8.fp8_quantize(x.new_zeros(4, 16384), "row")
    weight_8, scale_8 = torch.zeros(256, 256).to(torch.float8_e4m3fn), torch.ones(2, 2)
    for tokens in (1, 64):
        fp8.fp8_linear(x[:, :tokens], weight_8, scale_8, bias, activations="group")
    labels, mask = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    heads = leaf(4, 8), leaf(64, 8), leaf(4, 8).detach(), leaf(64, 8).detach()
    linear_kl.linear_kl_divergence(*heads, labels=labels, label_weight=0.5, mask=mask)
    with torch.no_grad():
        conv.causal_conv1d_step(x[:, 0], window, weight, bias)
        mamba2_step.mamba2_step(
            leaf(1, 1024 + 1280 + 16), leaf(1, 3, 1280), state, leaf(1280, 4), leaf(1280),
            leaf(16), leaf(16), leaf(16), leaf(1024), 1e-5, group_size=1024,
        )  # fmt: skip
        ssd_step.ssd_step(state, *(t[:, 0] if t.ndim > 1 else t for t in operands), **scalars)


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
