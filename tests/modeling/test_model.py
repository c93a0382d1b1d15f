"""Padding, packing, caching and generation give the results of a plain forward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from hybridize.kernels.eager import linear
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.packed_sequences import positions_from_seq_idx, seq_idx_from_positions
from hybrids import LAYOUTS, MIXED, build
from tiny import tokens

TIGHT = {"rtol": 1e-9, "atol": 1e-9}  # in float64
SHIFTED = {"rtol": 1e-5, "atol": 1e-5}  # positions differ, and RoPE's angles are float32


@pytest.fixture(scope="module", params=list(LAYOUTS))
def model(request):
    return build(LAYOUTS[request.param])


@torch.no_grad()
def test_a_sequence_in_parts_with_a_cache_equals_the_whole_sequence(model):
    ids = tokens(2, 40)
    expected = model(ids).logits
    cache = HybridCache(model.config)
    parts = [ids[:, :11], *ids[:, 11:20].split(1, dim=1), ids[:, 20:22], ids[:, 22:]]
    got = [model(part, cache=cache).logits for part in parts]
    torch.testing.assert_close(torch.cat(got, 1), expected, **TIGHT)


@torch.no_grad()
def test_bfloat16_is_multiplied_in_float32_on_cpus_without_it(monkeypatch):
    seen, plain = [], torch.nn.functional.linear
    monkeypatch.setattr(linear, "is_native", lambda dtype: dtype != torch.bfloat16)
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: seen.append(w.dtype) or plain(x, w, b)
    )
    model = build(MIXED, torch.bfloat16)
    assert model(tokens(2, 16)).logits.dtype == torch.bfloat16
    assert set(seen) == {torch.float32}


@torch.no_grad()
def test_left_padding_does_not_change_logits(model):
    ids, short = tokens(1, 30), tokens(1, 17, seed=2)
    batch = torch.cat([ids, torch.nn.functional.pad(short, (13, 0))])
    mask = torch.ones_like(batch)
    mask[1, :13] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for position_ids in (None, positions):
        out = model(batch, attention_mask=mask, position_ids=position_ids, use_cache=True)
        torch.testing.assert_close(out.logits[:1], model(ids).logits, **SHIFTED)
        torch.testing.assert_close(out.logits[1:, 13:], model(short).logits, **SHIFTED)
    # Decoding with the cache of the padded batch equals decoding without padding.
    more = tokens(2, 1, seed=3)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    out = model(more, attention_mask=mask, position_ids=positions[:, -1:] + 1, cache=out.cache)
    expected = model(torch.cat([short, more[1:]], 1)).logits[:, -1:]
    torch.testing.assert_close(out.logits[1:], expected, **SHIFTED)


@torch.no_grad()
@given(cuts=st.sets(st.integers(1, 35), max_size=5), by_position=st.booleans())
@settings(max_examples=12)
def test_packed_sequences_equal_separate_sequences(model, cuts, by_position):
    ids = tokens(1, 36)
    seq_idx = torch.zeros(1, 36, dtype=torch.long)
    for cut in cuts:
        seq_idx[:, cut:] += 1
    if by_position:
        got = model(ids, position_ids=positions_from_seq_idx(seq_idx)).logits
    else:
        got = model(ids, seq_idx=seq_idx).logits
    parts = ids.tensor_split(sorted(cuts), dim=1)
    expected = torch.cat([model(part).logits for part in parts], 1)
    torch.testing.assert_close(got, expected, **TIGHT)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_positions_and_seq_idx_are_inverse(lengths):
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    assert torch.equal(positions_from_seq_idx(numbers), positions)
    found = seq_idx_from_positions(positions)
    assert torch.equal(numbers if found is not None else numbers * 0, numbers)
    assert found is None or torch.equal(found, numbers)


@torch.no_grad()
def test_a_cache_with_packed_sequences_is_rejected(model):
    ids = tokens(1, 8)
    packed = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    assert model(ids, seq_idx=packed).cache is None
    with pytest.raises(ValueError, match="cannot continue packed sequences"):
        model(ids, seq_idx=packed, use_cache=True)
    with pytest.raises(ValueError, match="exclude each other"):
        model(ids, seq_idx=packed, attention_mask=torch.ones_like(ids))


@torch.no_grad()
def test_greedy_generation_takes_the_likeliest_token(model):
    ids = tokens(2, 6)
    got = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("cache_class", [HybridCache, lambda config: DynamicCache(config=config)])
def test_generation_continues_a_cache(model, cache_class):
    ids, cache = tokens(2, 6), cache_class(model.config)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    first = model.generate(ids, max_new_tokens=3, cache=cache, **options)
    # The last token was chosen, but the model has not run on it.
    second = model.generate(first, max_new_tokens=5, cache=cache, **options)
    assert torch.equal(second, model.generate(ids, max_new_tokens=8, use_cache=False, **options))


@torch.no_grad()
def test_beam_search_reorders_the_cache():
    model = build(MIXED)
    ids = tokens(1, 5)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@torch.no_grad()
def test_cache_cost_equals_the_memory_of_the_cache():
    model = build(MIXED, torch.float32)
    cache = HybridCache(model.config)
    model(tokens(1, 25), cache=cache)
    cost = cache_cost(model.config, 25, itemsize=4)
    assert cache.nbytes == cost.kv + cost.state


def test_logits_to_keep_and_loss():
    model = build(MIXED)
    ids = tokens(2, 12)
    full = model(ids, labels=ids)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full.logits[:, -3:], **TIGHT)
    expected = torch.nn.functional.cross_entropy(
        full.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    torch.testing.assert_close(full.loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    ids = tokens(2, 20)
    gradients = []
    for checkpointing in (False, True):
        model = build(MIXED).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, **TIGHT)


def test_hidden_states_are_one_per_block_and_the_last_one():
    model = build(MIXED)
    out = model(tokens(1, 5), output_hidden_states=True)
    assert len(out.hidden_states) == len(MIXED) + 1


def test_save_and_load_keeps_the_model(tmp_path):
    model = build(MIXED, torch.float32)
    model.save_pretrained(tmp_path)
    again = HybridForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens()
    assert torch.equal(again(ids).logits, model(ids).logits)


@torch.no_grad()
def test_triton_kernels_decode_the_same_logits(monkeypatch):
    pytest.importorskip("triton", reason="needs triton, which has no build for this platform")
    model = build(LAYOUTS["mamba only"], torch.float32)
    ids = tokens(2, 9)
    expected = model(ids).logits
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "triton")
    cache, parts = None, []
    for piece in ids.split([7, 1, 1], 1):
        output = model(piece, cache=cache, use_cache=True)
        cache = output.cache
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
