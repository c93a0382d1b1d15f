"""Rows that run in segments have the logits of whole rows; gradients stop between segments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.modeling.cache.segment import SegmentCache
from hybrids import LAYOUTS, MIXED, build
from tiny import tokens

LENGTH = 40


@pytest.fixture(scope="module", params=list(LAYOUTS))
def model(request):
    return build(LAYOUTS[request.param])


def in_segments(model, ids, seq_idx, cuts):
    """Run rows segment by segment with a `SegmentCache`; return all logits."""
    cache = SegmentCache(model.config)
    logits = []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        cache.detach()
        segment = slice(start, stop)
        logits.append(model(ids[:, segment], seq_idx=seq_idx[:, segment], cache=cache).logits)
    return torch.cat(logits, 1)


def seq_idx_of(starts):
    """Return ``seq_idx`` of rows, given where the second and later sequences of each row begin."""
    marks = torch.zeros(len(starts), LENGTH, dtype=torch.int64)
    for row, positions in enumerate(starts):
        marks[row, list(positions)] = 1
    return marks.cumsum(1)


positions = st.sets(st.integers(1, LENGTH - 1), max_size=5)


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(cuts=positions, first=positions, second=positions)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_segments_have_the_logits_of_the_whole_row(layout, cuts, first, second):
    model = build(LAYOUTS[layout])
    ids, seq_idx = tokens(2, LENGTH), seq_idx_of([first, second])
    expected = model(ids, seq_idx=seq_idx, use_cache=False).logits
    got = in_segments(model, ids, seq_idx, sorted(cuts))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def gradients(model, loss):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named, found, strict=True)
    }


def test_one_segment_has_the_gradients_of_a_plain_row(model):
    ids, seq_idx = tokens(2, LENGTH), seq_idx_of([{7, 30}, {1}])
    weights = torch.randn(2, LENGTH, 64, dtype=torch.float64)
    expected = gradients(
        model, (model(ids, seq_idx=seq_idx, use_cache=False).logits * weights).sum()
    )
    got = gradients(model, (in_segments(model, ids, seq_idx, []) * weights).sum())
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-9)


def test_gradients_of_a_segment_treat_the_past_as_constant(model):
    """The reference is finite differences of the last segment's loss with a fixed cache."""
    ids, seq_idx = tokens(1, LENGTH), seq_idx_of([{5, 20}])
    weights = torch.randn(1, LENGTH - 25, 64, dtype=torch.float64)

    def last_segment(shift, direction, past):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(shift * direction[name])
            loss = (run_last(past) * weights).sum()
            for name, parameter in model.named_parameters():
                parameter.sub_(shift * direction[name])
        return loss

    def past():
        cache = SegmentCache(model.config)
        with torch.no_grad():
            model(ids[:, :25], seq_idx=seq_idx[:, :25], cache=cache)
        return cache

    def run_last(cache):
        return model(ids[:, 25:], seq_idx=seq_idx[:, 25:], cache=cache).logits

    cache = SegmentCache(model.config)
    model(ids[:, :25], seq_idx=seq_idx[:, :25], cache=cache)  # has a graph until `detach`
    cache.detach()
    found = gradients(model, (run_last(cache) * weights).sum())
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    slope = sum((found[name] * direction[name]).sum() for name in found)
    # Each past is computed before the parameters change.
    epsilon = 1e-6
    up, down = last_segment(epsilon, direction, past()), last_segment(-epsilon, direction, past())
    torch.testing.assert_close((up - down) / (2 * epsilon), slope, rtol=1e-5, atol=1e-6)


def test_detach_frees_the_graph_of_earlier_segments(model):
    ids, seq_idx = tokens(1, LENGTH), seq_idx_of([set()])
    cache = SegmentCache(model.config)
    model(ids, seq_idx=seq_idx, cache=cache)
    cache.detach()
    values = [value for layer in cache.layers for value in vars(layer).values()]
    values += [v for states in values if isinstance(states, dict) for v in states.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    assert tensors
    assert all(tensor.grad_fn is None for tensor in tensors)


def test_gradient_checkpointing_with_a_segment_cache_is_rejected():
    model = build(MIXED).train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(tokens(1, 4), seq_idx=seq_idx_of([set()])[:, :4], cache=SegmentCache(model.config))
