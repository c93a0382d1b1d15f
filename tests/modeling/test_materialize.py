"""Modules that are built from given weights, without initial values."""

import pytest
import torch

from hybridize.modeling.block import HybridBlock
from hybridize.modeling.materialize import materialize, on_meta
from hybridize.modeling.model import HybridForCausalLM
from hybrids import MIXED, build
from tiny import tokens


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_a_materialized_model_has_the_logits_of_the_original(tied):
    rope = {"rope_type": "linear", "rope_theta": 5e3, "factor": 3.0}
    model = build(MIXED, torch.float32, tie_word_embeddings=tied, rope_parameters=rope)
    weights = {name: tensor.double() for name, tensor in model.named_parameters()}
    copy = materialize(lambda: HybridForCausalLM(model.config), weights.__getitem__)
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert {tensor.dtype for tensor in copy.parameters()} == {torch.float32}
    assert torch.equal(copy(tokens()).logits, model(tokens()).logits)


@torch.no_grad()
def test_a_materialized_block_does_not_share_memory_with_the_values():
    block = build(MIXED, torch.float32).model.blocks[0]
    values = dict(block.named_parameters())
    config = build(MIXED).config
    copy = materialize(lambda: HybridBlock(config, MIXED[0], 0), values.__getitem__)
    for name, parameter in copy.named_parameters():
        assert torch.equal(parameter, values[name])
        parameter.zero_()
        assert values[name].any()


def test_values_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match=r"weight is \(2, 3\); it must be \(3, 2\)"):
        materialize(lambda: torch.nn.Linear(2, 3), lambda _: torch.ones(2, 3))


def test_modules_on_the_meta_device_have_no_memory():
    model = on_meta(lambda: build(MIXED))
    assert all(parameter.is_meta for parameter in model.parameters())
