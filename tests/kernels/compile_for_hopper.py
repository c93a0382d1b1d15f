"""Compile every kernel of the operations for a Hopper GPU; needs no GPU.

Prints one line per launch: the kernel's name, its code size and its shared memory in bytes.
"""

import sys

import torch
import triton
from launch_everything import HOPPER, intercept, launch_all
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1", torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip


def compile_only(kernel: JITFunction, *args: object, grid: object, warmup: bool, **named: object):
    """Compile the kernel as a launch does, but do not launch it."""
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
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
        or (signature[name] == "i32" and values[name] % 16 == 0
            and not kernel.params[index].do_not_specialize)
    }  # fmt: skip
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=HOPPER, options=options)
    print(kernel.fn.__name__, len(compiled.asm["cubin"]), compiled.metadata.shared, sep="\t")
    if compiled.metadata.shared > 227 << 10:
        sys.exit(f"{kernel.fn.__name__}: {compiled.metadata.shared} bytes of shared memory")


if __name__ == "__main__":
    intercept(compile_only)
    launch_all(getattr(torch, sys.argv[1]), length=64, heads=16)
