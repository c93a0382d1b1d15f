"""transformers' own models compute the same with and without these kernels."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridize.errors import InputError
from hybridize.kernels import patch, unpatch
from tiny import randomize, stock_config, tokens

HYBRIDS = ("granitemoehybrid", "bamba", "nemotron_h", "mamba2")


def stock(architecture, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(stock_config(architecture, **changes)).eval()
    randomize(model)
    return model


@pytest.fixture(params=HYBRIDS)
def model(request):
    return stock(request.param)


def close(got, expected):
    """Check equality up to a few float32 roundings."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * scale)


@torch.no_grad()
def test_patched_logits_agree_and_unpatch_restores_the_bits(model):
    ids = tokens(2, 70)
    expected = model(ids).logits
    assert patch(model) >= 2
    got = model(ids).logits
    assert not torch.equal(got, expected)  # the kernels were used
    close(got, expected)
    unpatch(model)
    assert torch.equal(model(ids).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_padding_does_not_change_logits(model):
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    expected = model(ids, attention_mask=mask).logits
    patch(model)
    got = model(ids, attention_mask=mask).logits
    close(got[0, 17:], expected[0, 17:])
    close(got[1], expected[1])


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 30])
def test_decoding_continues_from_the_prompt(model, prompt):
    """Some prompts are shorter than the convolution; the second part has several tokens."""
    ids = tokens(2, prompt + 12)
    parts = [ids[:, :prompt], ids[:, prompt : prompt + 5], *ids[:, prompt + 5 :].split(1, 1)]
    logits = {}
    for kernels in ("stock", "ours"):
        cache, collected = None, []
        for part in parts:
            output = model(part, use_cache=True, cache=cache)
            cache = output.cache
            collected.append(output.logits)
        logits[kernels] = torch.cat(collected, 1)
        patch(model)
    close(logits["ours"], logits["stock"])


def test_generate_returns_the_same_tokens(model):
    ids = tokens(2, 20)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    patch(model)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), expected)


def test_gradients_agree(model):
    ids = tokens(2, 40)
    found = {}
    for kernels in ("stock", "ours"):
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        found[kernels] = {n: p.grad.clone() for n, p in model.named_parameters()}
        patch(model)
    for name, expected in found["stock"].items():
        error = (found["ours"][name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-4, name


@torch.no_grad()
def test_bfloat16_is_as_exact_as_the_original(model):
    ids = tokens(2, 70)
    exact = model(ids).logits
    model.bfloat16()
    patch(model)
    ours = model(ids).logits.float()
    unpatch(model)
    theirs = model(ids).logits.float()
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


@torch.no_grad()
def test_packed_sequences_are_separate(model):
    patch(model)
    mixer = next(module for module in model.modules() if hasattr(module, "conv1d"))
    x = torch.randn(1, 40, 32)
    seq_idx = torch.arange(40).div(13, rounding_mode="floor")[None]
    whole = mixer(x, seq_idx=seq_idx)
    alone = torch.cat([mixer(part) for part in x.split(13, 1)], 1)
    close(whole, alone)


def test_models_without_a_known_mixer_are_rejected():
    with pytest.raises(InputError, match="LlamaForCausalLM: no Mamba-2 mixer"):
        patch(stock("llama"))


def test_other_activations_than_silu_are_rejected():
    model = stock("mamba2", hidden_act="gelu")
    with pytest.raises(InputError, match="not SiLU"):
        patch(model)
    assert not any("forward" in vars(module) for module in model.modules())
