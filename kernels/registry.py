"""Choose the function that runs an operation.

CUDA tensors run on the ``triton`` backend. All other tensors run on the ``eager`` backend, and so
do CUDA tensors if Triton is not installed. The environment variable ``HYBRIDIZE_KERNELS`` names
another backend. If a backend lacks an operation, the next backend in ``KERNELS`` runs it.

`hybridize.kernels.api` declares each operation once; ``KERNELS`` lists its implementations.
To add a kernel, write one file in ``kernels/<backend>/`` and add one line to ``KERNELS``.
"""

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from hybridize.console import console
from hybridize.errors import InputError

KERNELS = {
    "triton": {
        "causal_conv1d": "conv",
        "causal_conv1d_step": "conv",
        "fp8_linear": "fp8",
        "fp8_quantize": "fp8",
        "gated_rms_norm": "norm",
        "linear_kl_divergence": "linear_kl",
        "mamba2_step": "mamba2_step",
        "rms_norm": "norm",
        "squared_relu": "activation",
        "ssd_scan": "ssd_scan",
        "ssd_step": "ssd_step",
        "swiglu": "activation",
    },
    "eager": {
        "causal_conv1d": "conv",
        "fp8_linear": "fp8",
        "gated_rms_norm": "norm",
        "linear": "linear",
        "linear_kl_divergence": "linear_kl",
        "rms_norm": "norm",
        "squared_relu": "activation",
        "squared_relu_mlp": "mlp",
        "ssd_scan": "ssd_scan",
        "swiglu": "activation",
    },
    "reference": {
        "causal_conv1d": "conv",
        "causal_conv1d_step": "conv",
        "fp8_linear": "fp8",
        "fp8_quantize": "fp8",
        "fp8_scale": "fp8",
        "gated_rms_norm": "norm",
        "linear": "linear",
        "linear_kl_divergence": "linear_kl",
        "linear_topk_kl_divergence": "linear_kl",
        "mamba2_step": "mamba2_step",
        "rms_norm": "norm",
        "squared_relu": "activation",
        "squared_relu_mlp": "mlp",
        "ssd_scan": "ssd_scan",
        "ssd_step": "ssd_step",
        "swiglu": "activation",
    },
}
"""For each backend, the module of ``kernels/<backend>/`` that implements an operation.

The function has the operation's name. Backends are in order of preference, and the last one has
every operation.
"""

P = ParamSpec("P")
R = TypeVar("R")


def operation(declaration: Callable[P, R]) -> Callable[P, R]:
    """Turn a declaration (signature and docstring) into a function that calls an implementation.

    The first argument must be a tensor; its device determines the implementation.
    """
    name = declaration.__name__
    first_parameter = next(iter(inspect.signature(declaration).parameters))

    @wraps(declaration)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor: Any = args[0] if args else kwargs.get(first_parameter)
        if tensor is None:
            raise TypeError(f"{name}() needs the tensor `{first_parameter}`")
        preferred = os.environ.get("HYBRIDIZE_KERNELS", "")
        result: R = implementation(name, tensor.is_cuda, preferred)(*args, **kwargs)
        return result

    return dispatch


@cache
def implementation(name: str, on_cuda: bool, preferred: str = "") -> Callable[..., Any]:
    """Return the function that runs an operation.

    Args:
        name: the operation's name.
        on_cuda: whether the tensors are on a CUDA device.
        preferred: the value of ``HYBRIDIZE_KERNELS``: the backend to use for every operation that
            it has. Empty for no preference.

    Raises:
        InputError: ``preferred`` is not a backend, or cannot run on this device.
    """
    if preferred:
        _check_backend(preferred, on_cuda)
        _announce(preferred)
    backend = preferred or ("triton" if on_cuda and _has_triton() else "eager")
    backends = list(KERNELS)
    for candidate in backends[backends.index(backend) :]:
        if module := KERNELS[candidate].get(name):
            loaded = importlib.import_module(f"hybridize.kernels.{candidate}.{module}")
            function: Callable[..., Any] = getattr(loaded, name)
            return function
    raise LookupError(f"{name}: no implementation is registered in KERNELS")


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check_backend(preferred: str, on_cuda: bool) -> None:
    if preferred not in KERNELS:
        raise InputError(
            f"HYBRIDIZE_KERNELS={preferred}: no such backend; choose one of {', '.join(KERNELS)}"
        )
    if preferred == "triton":
        if not _has_triton():
            raise InputError(
                "HYBRIDIZE_KERNELS=triton: triton is not installed; pip install triton"
            )
        if not on_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(
                "HYBRIDIZE_KERNELS=triton: these kernels need tensors on a CUDA device; "
                "unset the variable, or test the kernels with TRITON_INTERPRET=1"
            )


@cache
def _announce(preferred: str) -> None:
    console.message(f"kernels: {preferred} (HYBRIDIZE_KERNELS)")
