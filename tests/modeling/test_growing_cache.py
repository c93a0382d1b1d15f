"""Keys and values grow in place, and are always those that transformers' own layers have."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hybridize.modeling.cache.growing import GrowingLayer, GrowingSlidingWindowLayer
from hybridize.modeling.cache.hybrid import HybridCache
from hybrids import LAYOUTS, build
from tiny import tokens

PAIRS = [
    pytest.param(GrowingLayer, DynamicLayer, id="all tokens"),
    pytest.param(lambda: GrowingSlidingWindowLayer(9), lambda: DynamicSlidingWindowLayer(9)),
    pytest.param(lambda: GrowingSlidingWindowLayer(1), lambda: DynamicSlidingWindowLayer(1)),
]


def append(layers, length, batch):
    keys, values = torch.randn(2, batch, 3, length, 4)
    ours, theirs = (layer.update(keys, values[..., :2]) for layer in layers)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_any_sequence_of_calls_gives_the_same_tokens(ours, theirs, mode):
    for seed in range(20):
        chance, batch = random.Random(seed), 2
        layers = [ours(), theirs()]
        with mode():
            append(layers, 5, batch)
            for _ in range(30):
                action = chance.choice(["append", "append", "beams", "branch", "cut", "reset"])
                if action == "append":
                    append(layers, chance.choice([1, 1, 1, 3, 90]), batch)
                elif action == "beams":
                    for layer in layers:
                        layer.reorder_cache(torch.tensor([1, 0]))
                elif action == "branch":  # the copy goes on, and then the original does
                    append([copy.copy(layer) for layer in layers], 2, batch)
                    append([copy.deepcopy(layer) for layer in layers], 2, batch)
                elif action == "cut" and isinstance(layers[0], GrowingLayer):
                    for layer in layers:
                        layer.crop(-1)
                elif action == "reset":
                    for layer in layers:
                        layer.reset()
                    append(layers, 4, batch)
            assert layers[0].get_seq_length() == layers[1].get_seq_length()


@torch.no_grad()
@pytest.mark.parametrize("cache_class", [HybridCache, lambda config: DynamicCache(config=config)])
def test_a_step_copies_no_cached_tokens(cache_class):
    model, ids = build(LAYOUTS["mixed"]), tokens(2, 40)
    cache = cache_class(model.config)
    model(ids[:, :30], cache=cache)
    full = cache.layers[2]  # attention to all tokens
    before = full.keys.data_ptr(), full.values.data_ptr()
    for token in ids[:, 30:].split(1, dim=1):
        model(token, cache=cache)
    assert full.keys.shape[2] == 40
    assert (full.keys.data_ptr(), full.values.data_ptr()) == before


def test_a_cache_from_inference_mode_goes_on_outside():
    model, ids = build(LAYOUTS["mixed"]), tokens(1, 20)
    cache = HybridCache(model.config)
    with torch.inference_mode():
        model(ids[:, :19], cache=cache)
    with torch.no_grad():
        layer = cache.layers[2]
        keys = torch.randn(1, 2, 1, 8, dtype=torch.float64)
        assert torch.equal(layer.update(keys, keys)[0][:, :, -1:], keys)


def test_gradients_flow_through_the_cached_tokens():
    layer, keys = GrowingLayer(), torch.randn(1, 2, 3, 4, requires_grad=True)
    layer.update(keys, keys)
    full, _ = layer.update(keys, keys)
    full.square().sum().backward()
    assert torch.equal(keys.grad, 4 * keys)
