"""A random hybrid in memory, and its tensors by name, for the tests of cuts."""

import torch

from hybridize.checkpoints.dtypes import dtype_name
from hybridize.compress.prune.pruned_tensors import PrunedTensors
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
    """The parameters of a model, as `Tensors`."""

    def __init__(self, model: HybridForCausalLM) -> None:
        self._values = dict(model.named_parameters())

    def get(self, name: str) -> torch.Tensor:
        return self._values[name].detach()

    def dtype(self, name: str) -> str:
        return dtype_name(self._values[name].dtype)


def build(blocks=BLOCKS, **fields) -> HybridForCausalLM:
    """Return a model in float64 whose norms have a negligible epsilon."""
    fields = {"vocab_size": 64, "hidden_size": 32, "norm_eps": 1e-12} | fields
    model = HybridForCausalLM(HybridConfig.from_blocks(blocks, **fields)).eval()
    randomize(model)
    return model.double()


def prune_in_memory(model: HybridForCausalLM, architecture, scores) -> PrunedTensors:
    return PrunedTensors(InMemory(model), model.config.spec, architecture, scores)


def assemble(pruned: PrunedTensors) -> HybridForCausalLM:
    """Return a model in float64; every parameter must have the expected shape."""
    model = HybridForCausalLM(HybridConfig.from_spec(pruned.config)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = pruned.get(name)
            assert value.shape == parameter.shape, name
            parameter.copy_(value)
    return model
