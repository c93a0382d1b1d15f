"""Print the keys of Triton's cache of compiled kernels for several lengths; needs no GPU.

Prints one line per launch: the length, the kernel's name, and the key. Triton compiles (or tunes) a
kernel for each new key.
"""

import sys

import torch
from launch_everything import HOPPER, intercept, launch_all
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

_BACKEND = make_backend(HOPPER)
_length = 0


def print_key(kernel: JITFunction, *args: object, grid: object, warmup: bool, **named: object):
    """Compute the key as a launch does, but do not compile or launch the kernel."""
    del grid, warmup
    bind = create_function_from_signature(kernel.signature, kernel.params, _BACKEND)
    _, specialization, options = bind(*args, **named)
    print(_length, kernel.fn.__name__, (specialization, sorted(options.items())), sep="\t")


if __name__ == "__main__":
    intercept(print_key)
    for _length in map(int, sys.argv[1:]):
        launch_all(torch.bfloat16, _length, heads=6)
