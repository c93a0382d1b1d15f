"""Decoding at fixed addresses gives the results of ordinary decoding, and suits CUDA graphs."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hybridize.modeling import decoding
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.decoding import StaticDecoder, cuda_graph_obstacle
from hybridize.modeling.layers.decode_attention import decode_attention, grouped_sdpa
from hybrids import LAYOUTS, MIXED, build
from tiny import tokens

BATCH, PROMPT, NEW = 3, 17, 12


@torch.no_grad()
def decode_ordinarily(model, prompts, steps):
    """Return the greedy tokens and the last logits, computed with an ordinary cache."""
    outputs, found = model(prompts, use_cache=True), []
    cache = outputs.cache
    for _ in range(steps):
        token = outputs.logits[:, -1:].argmax(-1)
        found.append(token)
        outputs = model(token, cache=cache, use_cache=True)
    return torch.cat(found, 1), outputs.logits[:, -1]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("prompts_per_prefill", [1, 2, 100])
def test_static_decoding_equals_ordinary_decoding(monkeypatch, name, prompts_per_prefill):
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", prompts_per_prefill * PROMPT)
    model = build(LAYOUTS[name])
    prompts = tokens(BATCH, PROMPT)
    expected, logits = decode_ordinarily(model, prompts, NEW)
    decoder = StaticDecoder(model, BATCH, PROMPT + NEW)
    found = []
    decoder.prefill(prompts)
    for _ in range(NEW):
        found.append(decoder.token.clone())
        last = decoder.token.clone()
        decoder.step()
    assert (torch.cat(found, 1) == expected).all()
    assert (decoder.token[:, 0] == logits.argmax(-1)).all()
    # Decode once more, to compare the logits as well.
    decoder.prefill(prompts)
    for token in expected[:, :-1].split(1, dim=1):
        assert (decoder.token == token).all()
        decoder.step()
    with torch.no_grad():
        again = model(last, cache=decoder.cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(again, logits, atol=1e-9, rtol=1e-9)


def test_addresses_are_fixed_and_a_prefill_overwrites_the_last_prompt():
    model = build(LAYOUTS["mixed"])
    decoder = StaticDecoder(model, 1, 40)

    def addresses():
        result = [decoder.token.data_ptr()]
        for layer in decoder.cache.layers:
            for value in vars(layer).values():
                states = value.values() if isinstance(value, dict) else [value]
                result += [s.data_ptr() for s in states if isinstance(s, torch.Tensor)]
        return result

    before = addresses()
    decoder.prefill(tokens(1, 30, seed=5))
    for _ in range(9):
        decoder.step()
    decoder.prefill(tokens(1, 8, seed=6))
    decoder.step()
    assert addresses() == before
    assert len(before) > 10
    expected, _ = decode_ordinarily(model, tokens(1, 8, seed=6), 2)
    assert decoder.token == expected[:, -1:]


@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_read_no_values(name):
    """A CUDA graph cannot read values. Under FakeTensorMode, `.item()` and `if` raise."""
    decoder = StaticDecoder(build(LAYOUTS[name]), 2, 20)
    decoder.prefill(tokens(2, 9))
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder.step()


def test_a_step_that_reads_a_value_raises():
    """`test_steps_read_no_values` can fail."""

    def read_value(*_):
        return bool(decoder.token.sum() > 0)

    decoder = StaticDecoder(build(LAYOUTS["mixed"]), 2, 20)
    decoder.prefill(tokens(2, 9))
    decoder._model.model.embed_tokens.register_forward_hook(
        lambda _m, _i, out: read_value() and out
    )
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(DataDependentOutputException),
    ):
        decoder.step()


class FakeCuda:
    """Replaces the parts of torch.cuda that `capture_graph` uses, and logs the calls."""

    def __init__(self, decoder):
        self.decoder, self.calls = decoder, []

    def Stream(self):  # noqa: N802 - torch's name
        return self

    current_stream = Stream

    def wait_stream(self, stream):
        assert stream is self
        self.calls.append("wait")

    @contextlib.contextmanager
    def stream(self, stream):
        self.calls.append("stream")
        yield
        self.calls.append("end")

    def CUDAGraph(self):  # noqa: N802
        return self

    @contextlib.contextmanager
    def graph(self, graph):
        assert graph is self
        self.calls.append("capture")
        yield

    def replay(self):
        self.calls.append("replay")
        self.decoder._step()


def test_steps_replay_the_graph_that_was_captured_before_the_prefill(monkeypatch):
    model = build(LAYOUTS["mixed"])
    decoder = StaticDecoder(model, BATCH, PROMPT + NEW)
    fake = FakeCuda(decoder)
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    decoder.capture_graph()
    assert fake.calls == ["wait", "stream", "end", "wait", "capture"]
    prompts = tokens(BATCH, PROMPT)
    decoder.prefill(prompts)
    for _ in range(NEW - 1):
        decoder.step()
    assert fake.calls[5:] == ["replay"] * (NEW - 1)
    expected, _ = decode_ordinarily(model, prompts, NEW)
    assert (decoder.token == expected[:, -1:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cache_cost_equals_the_memory_of_the_static_cache(dtype):
    model = build(MIXED, dtype=dtype)
    cache = StaticDecoder(model, 2, 31).cache
    assert isinstance(cache, HybridCache)
    assert cache.nbytes == 2 * cache_cost(model.config, 31, dtype.itemsize, preallocated=True).total


@pytest.mark.parametrize("attention", [decode_attention, grouped_sdpa])
def test_attention_of_one_token_equals_the_formula(attention):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, length, 5, generator=generator, dtype=torch.float64)
        for heads, length in ((6, 1), (2, 9), (2, 9))
    )
    visible = torch.rand(2, 1, 1, 9, generator=generator) > 0.4
    visible[..., 0] = True
    found, _ = attention(torch.nn.Identity(), q, k, v, visible, scaling=0.7)
    for batch in range(2):
        for head in range(6):
            keep = visible[batch, 0, 0]
            scores = 0.7 * k[batch, head // 3, keep] @ q[batch, head, 0]
            expected = scores.softmax(0) @ v[batch, head // 3, keep]
            torch.testing.assert_close(found[batch, 0, head], expected)


@torch.no_grad()
def test_a_step_on_a_cpu_reads_keys_and_values_once(monkeypatch):
    """torch's kernel reads them once per row of its first argument's heads."""
    seen, plain = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **options: seen.append((q.shape, k.shape)) or plain(q, k, v, **options),
    )
    model = build(MIXED, torch.float32)
    cache = model(tokens(2, 6), use_cache=True).cache
    seen.clear()
    model(tokens(2, 1), cache=cache)
    assert len(seen) == 3
    assert all(q[1] == k[1] for q, k in seen)


def test_more_than_one_token_per_step_is_rejected():
    model = build(LAYOUTS["mixed"])
    decoder = StaticDecoder(model, 1, 10)
    with pytest.raises(ValueError, match="one token per sequence"):
        model(tokens(1, 2), cache=decoder.cache, use_cache=True)


def test_rope_that_depends_on_the_length_prevents_a_cuda_graph():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "'dynamic'" in cuda_graph_obstacle(build(MIXED[2:4], rope_parameters=rope).config)
    assert cuda_graph_obstacle(build(MIXED).config) is None
