"""A random hybrid in memory, as tensors by name, for the tests of cuts."""

import torch

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM
from tiny import randomize

BLOCKS = [
    MambaSizes(6, 8, 3, 10, proj_bias=True),
    MLPSizes(24),
    AttentionSizes(6, 3, 8, qkv_bias=True, qk_norm=True),
    MLPSizes(24),
    MambaSizes(6, 8, 3, 10, proj_bias=True),
    MLPSizes(24),
]


class InMemory:
    """A model's parameters as `Tensors`."""

    def __init__(self, model: HybridForCausalLM) -> None:
        self._values = dict(model.named_parameters())

    def get(self, name: str) -> torch.Tensor:
        return self._values[name].detach()

    def dtype(self, name: str) -> torch.dtype:
        return self._values[name].dtype


def build(blocks=BLOCKS, **fields) -> HybridForCausalLM:
    """A model in float64, with an eps too small to matter."""
    fields = {"vocab_size": 64, "hidden_size": 32, "norm_eps": 1e-12} | fields
    model = HybridForCausalLM(HybridConfig.from_blocks(blocks, **fields)).eval()
    randomize(model)
    return model.double()


def assemble(tensors, config) -> HybridForCausalLM:
    """A model of tensors; every parameter is asked for, and has to have the shape it should."""
    model = HybridForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = tensors.get(name)
            assert value.shape == parameter.shape, name
            parameter.copy_(value)
    return model
