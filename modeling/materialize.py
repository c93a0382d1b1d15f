"""Build a module from given weights, without computing initial values first.

`on_meta` builds a module without memory, and `materialize` copies values into it. The frequencies
of RoPE are not parameters, so they are computed again.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hybridize.modeling.layers.rope import RotaryEmbedding

Module = TypeVar("Module", bound=nn.Module)


def on_meta(build: Callable[[], Module]) -> Module:
    """Build a module on the meta device: its parameters have a shape but no values."""
    with torch.device("meta"):
        return build()


@torch.no_grad()
def materialize(
    build: Callable[[], Module],
    values: Callable[[str], torch.Tensor],
    device: torch.device | str = "cpu",
) -> Module:
    """Build a module with copies of the given values, in float32, for inference.

    Args:
        build: returns the module.
        values: returns the values of the parameter of the given name, in any dtype.
        device: the module's device.

    Returns:
        The module in evaluation mode; its parameters need no gradient.

    Raises:
        ValueError: values of another shape than the parameter's.
    """
    module = on_meta(build)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}

    def copy(name: str) -> nn.Parameter:
        given, shape = values(name), shapes[name]
        if given.shape != shape:
            raise ValueError(f"{name} is {tuple(given.shape)}; it must be {tuple(shape)}")
        # The copy is contiguous. With the strides of ``given``, torch could choose other kernels.
        weight = torch.empty(shape, dtype=torch.float32, device=device)
        return nn.Parameter(weight.copy_(given), requires_grad=False)

    return set_parameters(module, copy, device).eval()


def set_parameters(
    module: Module, parameter: Callable[[str], nn.Parameter], device: torch.device | str
) -> Module:
    """Replace all parameters that are on the meta device, and compute the buffers of RoPE.

    Args:
        module: changed in place. Parameters that are not on the meta device do not change.
        parameter: returns the new parameter of the given name.
        device: the device of the buffers.

    Returns:
        The module itself.
    """
    for name, old in list(module.named_parameters()):  # tied parameters appear once
        if old.is_meta:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, parameter(name))
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    compute_rope(module, device)
    return module


def compute_rope(module: nn.Module, device: torch.device | str) -> None:
    """Compute the buffers of every `RotaryEmbedding` in a module; checkpoints do not store them."""
    for name, child in list(module.named_modules()):
        if isinstance(child, RotaryEmbedding):
            module.set_submodule(name, RotaryEmbedding(child.config).to(device))
