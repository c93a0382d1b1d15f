"""The operations that a hybrid is made of: one declaration each, several implementations.

- `api` declares every operation: its signature, shapes and dtypes.
- `registry` chooses the implementation by device and backend.
- ``reference/``, ``eager/`` and ``triton/`` implement the operations, in files of the same names.
- `patch_transformers` runs transformers' own models with these kernels.
"""

from hybridize.kernels.api import (
    causal_conv1d,
    causal_conv1d_step,
    fp8_linear,
    fp8_quantize,
    fp8_scale,
    gated_rms_norm,
    linear,
    linear_kl_divergence,
    linear_topk_kl_divergence,
    mamba2_step,
    rms_norm,
    squared_relu,
    squared_relu_mlp,
    ssd_scan,
    ssd_step,
    swiglu,
)
from hybridize.kernels.patch_transformers import patch, unpatch

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "fp8_linear",
    "fp8_quantize",
    "fp8_scale",
    "gated_rms_norm",
    "linear",
    "linear_kl_divergence",
    "linear_topk_kl_divergence",
    "mamba2_step",
    "patch",
    "rms_norm",
    "squared_relu",
    "squared_relu_mlp",
    "ssd_scan",
    "ssd_step",
    "swiglu",
    "unpatch",
]
