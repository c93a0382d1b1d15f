"""transformers' own models with these kernels give the logits that they give without."""

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


def close(got, want):
    """To a few roundings in float32."""
    scale = float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * scale)


@torch.no_grad()
def test_logits_are_the_same_and_come_back_to_the_bit(model):
    ids = tokens(2, 70)
    want = model(ids).logits
    assert patch(model) >= 2
    got = model(ids).logits
    assert not torch.equal(got, want)  # other kernels did run
    close(got, want)
    unpatch(model)
    assert torch.equal(model(ids).logits, want)
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_padding_is_not_seen(model):
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    want = model(ids, attention_mask=mask).logits
    patch(model)
    got = model(ids, attention_mask=mask).logits
    close(got[0, 17:], want[0, 17:])
    close(got[1], want[1])


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 30])
def test_decoding_goes_on_from_the_prompt(model, prompt):
    """Prompts shorter than the convolution among them, and a second piece of several tokens."""
    ids = tokens(2, prompt + 12)
    pieces = [ids[:, :prompt], ids[:, prompt : prompt + 5], *ids[:, prompt + 5 :].split(1, 1)]
    logits = {}
    for kernels in ("stock", "ours"):
        cache, parts = None, []
        for piece in pieces:
            output = model(piece, use_cache=True, cache=cache)
            cache = output.cache
            parts.append(output.logits)
        logits[kernels] = torch.cat(parts, 1)
        patch(model)
    close(logits["ours"], logits["stock"])


def test_generation_writes_the_same(model):
    ids = tokens(2, 20)
    want = model.generate(ids, max_new_tokens=12, do_sample=False)
    patch(model)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), want)


def test_gradients_are_the_same(model):
    ids = tokens(2, 40)
    found = {}
    for kernels in ("stock", "ours"):
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        found[kernels] = {n: p.grad.clone() for n, p in model.named_parameters()}
        patch(model)
    for name, want in found["stock"].items():
        error = (found["ours"][name] - want).norm() / want.norm().clamp(min=1e-6)
        assert error < 1e-4, name


@torch.no_grad()
def test_bfloat16_agrees_as_well_as_bfloat16_can(model):
    ids = tokens(2, 70)
    exact = model(ids).logits
    model.bfloat16()
    patch(model)
    ours = model(ids).logits.float()
    unpatch(model)
    theirs = model(ids).logits.float()
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


@torch.no_grad()
def test_packed_rows_are_separate(model):
    patch(model)
    mixer = next(module for module in model.modules() if hasattr(module, "conv1d"))
    x = torch.randn(1, 40, 32)
    seq_idx = torch.arange(40).div(13, rounding_mode="floor")[None]
    whole = mixer(x, seq_idx=seq_idx)
    alone = torch.cat([mixer(part) for part in x.split(13, 1)], 1)
    close(whole, alone)


def test_models_without_such_a_mixer_are_refused():
    with pytest.raises(InputError, match="LlamaForCausalLM: no Mamba-2 mixer"):
        patch(stock("llama"))


def test_an_activation_that_the_kernels_do_not_have_is_refused():
    model = stock("mamba2", hidden_act="gelu")
    with pytest.raises(InputError, match="not SiLU"):
        patch(model)
    assert not any("forward" in vars(module) for module in model.modules())
