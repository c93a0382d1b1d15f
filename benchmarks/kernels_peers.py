"""The implementations that `kernels.py` and `kernels_gpu.py` compare our kernels with."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F

Implementation = Callable[..., torch.Tensor]


@dataclass
class Case:
    """One operation on random operands.

    Attributes:
        inputs: the operands by keyword; gradients are computed for those that require them.
        implementations: by name, ours first: functions from the operands to the output.
        operations, bytes: minimum of floating-point operations, and of bytes to move.
        differentiable: whether the operation has a gradient.
    """

    inputs: dict[str, torch.Tensor]
    implementations: dict[str, Implementation]
    operations: float
    bytes: float
    differentiable: bool = True

    def forward(self, implementation: Implementation) -> torch.Tensor:
        """Return the output, without a graph."""
        with torch.no_grad():
            return implementation(**self.inputs)

    def forward_and_backward(self, implementation: Implementation) -> torch.Tensor:
        """Compute all gradients of the output's sum, and return the first one."""
        output = implementation(**self.inputs)
        leaves = [tensor for tensor in self.inputs.values() if tensor.requires_grad]
        return torch.autograd.grad(output, leaves, torch.ones_like(output))[0]


def installed(**peers: Implementation) -> dict[str, Implementation]:
    """Return the peers whose package, given by the keyword, is installed."""
    return {name: peer for name, peer in peers.items() if find_spec(name) is not None}


def total_bytes(inputs: dict[str, torch.Tensor], *outputs: torch.Tensor) -> float:
    """Return the bytes of all tensors together."""
    return float(sum(tensor.nbytes for tensor in (*inputs.values(), *outputs)))


def mamba_ssm_scan(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
    """Run the scan of mamba_ssm."""
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    return scan.mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
    )


def causal_conv1d_package(x, weight, bias):  # type: ignore[no-untyped-def]
    """Run the convolution of the package causal_conv1d."""
    module = importlib.import_module("causal_conv1d")
    return module.causal_conv1d_fn(x.mT, weight, bias, activation="silu").mT


def torch_conv1d(x, weight, bias):  # type: ignore[no-untyped-def]
    """Convolve in plain torch, as transformers does."""
    width = weight.shape[1]
    y = F.conv1d(x.mT, weight[:, None], bias, padding=width - 1, groups=len(weight))
    return F.silu(y[..., : x.shape[1]]).mT


def torch_gated_rms_norm(x, gate, weight, group_size):  # type: ignore[no-untyped-def]
    """Gate and normalize in plain torch, as transformers does."""
    wide = (x.float() * F.silu(gate.float())).unflatten(-1, (-1, group_size))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight * wide.flatten(-2).to(x.dtype)


def torch_squared_relu_mlp(x, up, down):  # type: ignore[no-untyped-def]
    """Apply an MLP without a gate, in plain torch."""
    return F.linear(F.relu(F.linear(x, up)).square(), down)


def torch_kl_divergence(hidden, weight, target_hidden, target_weight):  # type: ignore[no-untyped-def]
    """Compute the KL divergence in plain torch, with the logits of all tokens in memory."""
    teacher = (target_hidden @ target_weight.T).float().log_softmax(-1)
    student = (hidden @ weight.T).float().log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
