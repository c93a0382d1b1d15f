"""Caches in FP8 and bfloat16: rounding, memory, and the commands that use them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import hybridize
from hybridize.__main__ import main
from hybridize.errors import InputError
from hybridize.modeling.cache.compact import make_cache, pack_fp8_rows, unpack_fp8_rows
from hybridize.modeling.cache.format import KV_DTYPES, SSM_DTYPES, CacheFormat
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM
from tiny import randomize, write_stock, write_tokenizer

BLOCKS = [
    MambaSizes(4, 8, 2, 16),
    MLPSizes(24),
    AttentionSizes(4, 2, 16),
    AttentionSizes(4, 2, 16, sliding_window=6),
]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture
def model():
    config = HybridConfig.from_blocks(
        BLOCKS, vocab_size=64, hidden_size=32, rope_parameters=ROPE, eos_token_id=None
    )
    model = HybridForCausalLM(config).eval()
    randomize(model)
    return model


@given(arrays("float32", (3, 16), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_packed_rows_unpack_to_within_fp8_rounding(values):
    x = torch.from_numpy(values)
    largest = x.abs().amax(-1, keepdim=True)
    unpacked = unpack_fp8_rows(pack_fp8_rows(x), torch.float32)
    # E4M3 has a mantissa of three bits. Rounding changes a normal value by at most 1/16 of itself,
    # and a subnormal one by at most 1/16 of the smallest normal value. The scale is rounded up to
    # bfloat16, which adds less than 1%.
    bound = torch.maximum(x.abs() / 16, largest * 2.0**-9 / 448 * 1.01)
    assert ((unpacked - x).abs() <= bound + 1e-36).all()
    assert (unpacked.abs() <= largest * 1.01).all()
    again = unpack_fp8_rows(pack_fp8_rows(unpacked), torch.float32)
    precise = largest[:, 0] >= 1e-30  # the scales of smaller rows lose bits in bfloat16
    assert torch.equal(again[precise], unpacked[precise])


def pack_and_unpack(x: torch.Tensor) -> torch.Tensor:
    return unpack_fp8_rows(pack_fp8_rows(x), x.dtype)


def test_a_packed_row_takes_two_bytes_more_than_its_width():
    x = torch.randn(2, 3, 5, 64)
    assert pack_fp8_rows(x).nbytes == 2 * 3 * 5 * 66


@torch.no_grad()
@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("ssm", SSM_DTYPES)
def test_compact_cache_equals_plain_cache_with_rounded_contents(model, kv, ssm):
    """The reference is a plain cache. It rounds keys and values when it stores them, and the test
    rounds its states after every call."""
    ids = torch.randint(64, (2, 20))
    cache = make_cache(model.config, CacheFormat(kv, ssm))
    assert isinstance(cache, HybridCache)

    def rounded_state(state):
        if ssm == "bfloat16":
            return state.bfloat16().float()
        return pack_and_unpack(state) if ssm == "fp8" else state

    class Rounding(HybridCache):
        def update(self, key_states, value_states, *args, **kwargs):
            if kv == "fp8":
                key_states, value_states = map(pack_and_unpack, (key_states, value_states))
            return super().update(key_states, value_states, *args, **kwargs)

    plain = Rounding(model.config)
    for piece in ids.split([9, 1, 1, 4, 1, 1, 3], 1):
        got, expected = model(piece, cache=cache).logits, model(piece, cache=plain).logits
        # Equal inputs in another memory layout are summed in another order.
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        states = plain.layers[0].recurrent_states
        states[0].copy_(rounded_state(states[0]))
    if kv == "fp8":
        assert cache.nbytes < plain.nbytes


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 5}])
def test_generate_uses_the_cache_format(model, options):
    model.model.cache_format = CacheFormat("fp8", "fp8")
    torch.manual_seed(0)
    out = model.generate(
        torch.randint(64, (2, 7)), max_new_tokens=6, return_dict_in_generate=True, **options
    )
    assert out.sequences.shape == (2, 13)
    cache = out.get("cache", out.get("past_key_values"))
    assert cache.layers[2].keys.dtype == torch.uint8
    assert cache.layers[0].recurrent_states[0].dtype == torch.uint8


def test_unknown_dtypes_are_rejected():
    with pytest.raises(InputError, match="`kv_cache_dtype=int8`: choose one of auto, fp8"):
        CacheFormat(kv="int8")
    with pytest.raises(InputError, match="`ssm_cache_dtype=int8`: choose one of auto, bfloat16"):
        CacheFormat(ssm="int8")


def test_generate_command_accepts_cache_dtypes(tmp_path, capsys):
    write_stock(tmp_path / "in", "bamba")
    write_tokenizer(tmp_path / "in")
    options = ["--kv-cache-dtype", "fp8", "--ssm-cache-dtype", "bfloat16"]
    assert (
        main(["generate", str(tmp_path / "in"), "-p", "ab", "--max-new-tokens", "3", *options]) == 0
    )
    assert capsys.readouterr().out.startswith("ab")


def test_bench_measures_a_smaller_cache(tmp_path):
    write_stock(tmp_path / "in", "bamba")
    cache_bytes = {}
    for kv, ssm in (("auto", "auto"), ("fp8", "fp8")):
        result = hybridize.bench(
            tmp_path / "in", prompt_len=(40,), gen_len=3, repeats=1,
            kv_cache_dtype=kv, ssm_cache_dtype=ssm,
        )  # fmt: skip
        cache_bytes[kv] = (result.rows[0].kv_bytes, result.rows[0].state_bytes)
        assert result.options["kv_cache_dtype"] == kv
    assert cache_bytes["fp8"][0] < 0.4 * cache_bytes["auto"][0]
    assert cache_bytes["fp8"][1] < cache_bytes["auto"][1]


def test_evaluation_runs_through_the_compact_cache(tmp_path):
    write_stock(tmp_path / "in", "bamba")
    write_tokenizer(tmp_path / "in")
    (tmp_path / "text.txt").write_text("Some words to predict, and more of them. " * 20)
    found = {}
    for kv, ssm in (("auto", "auto"), ("fp8", "auto"), ("auto", "fp8")):
        result = hybridize.evaluate(
            tmp_path / "in", perplexity=tmp_path / "text.txt", max_length=200,
            kv_cache_dtype=kv, ssm_cache_dtype=ssm,
        )  # fmt: skip
        found[kv, ssm] = result.models[0].perplexity.nats_per_token
    assert len(set(found.values())) == 3
    assert max(found.values()) == pytest.approx(min(found.values()), rel=0.05)
    with pytest.raises(InputError, match="`backend=hybridize` only"):
        hybridize.evaluate(
            tmp_path / "in", perplexity=tmp_path / "text.txt", backend="transformers",
            kv_cache_dtype="fp8",
        )  # fmt: skip
