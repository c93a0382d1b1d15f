"""Prints what Triton keeps each compiled kernel under, for texts of several lengths.

One line a launch: the length, the kernel's name, and its key, by which Triton knows whether it has
compiled, or tuned, this before. There is no GPU in it.
"""

import sys

import torch
from every_launch import HOPPER, intercept, launch_all
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

_BACKEND = make_backend(HOPPER)
_length = 0


def print_key(kernel: JITFunction, *args: object, grid: object, warmup: bool, **named: object):
    """Do what a launch does up to looking for the compiled kernel."""
    del grid, warmup
    bind = create_function_from_signature(kernel.signature, kernel.params, _BACKEND)
    _, specialization, options = bind(*args, **named)
    print(_length, kernel.fn.__name__, (specialization, sorted(options.items())), sep="\t")


if __name__ == "__main__":
    intercept(print_key)
    for _length in map(int, sys.argv[1:]):
        launch_all(torch.bfloat16, _length, heads=6)
