"""Long rows in segments: the same predictions as whole rows, and gradients that stop between."""

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
    """Run a row piece by piece, each going on from the one before; return all logits."""
    cache = SegmentCache(model.config)
    logits = []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        cache.detach()
        piece = slice(start, stop)
        logits.append(model(ids[:, piece], seq_idx=seq_idx[:, piece], cache=cache).logits)
    return torch.cat(logits, 1)


def numbered(begins):
    """Sequence numbers of rows in which documents begin at given places."""
    marks = torch.zeros(len(begins), LENGTH, dtype=torch.int64)
    for row, places in enumerate(begins):
        marks[row, list(places)] = 1
    return marks.cumsum(1)


places = st.sets(st.integers(1, LENGTH - 1), max_size=5)


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(cuts=places, first=places, second=places)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_segments_predict_what_the_whole_row_predicts(layout, cuts, first, second):
    model = build(LAYOUTS[layout])
    ids, seq_idx = tokens(2, LENGTH), numbered([first, second])
    want = model(ids, seq_idx=seq_idx, use_cache=False).logits
    got = in_segments(model, ids, seq_idx, sorted(cuts))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def gradients(model, loss):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named, found, strict=True)
    }


def test_one_segment_has_the_gradients_of_a_plain_row(model):
    ids, seq_idx = tokens(2, LENGTH), numbered([{7, 30}, {1}])
    weights = torch.randn(2, LENGTH, 64, dtype=torch.float64)
    want = gradients(model, (model(ids, seq_idx=seq_idx, use_cache=False).logits * weights).sum())
    got = gradients(model, (in_segments(model, ids, seq_idx, []) * weights).sum())
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_each_segment_given_the_past(model):
    """Finite differences of the last segment's loss, the past's cache held fixed."""
    ids, seq_idx = tokens(1, LENGTH), numbered([{5, 20}])
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
    model(ids[:, :25], seq_idx=seq_idx[:, :25], cache=cache)  # with a graph, which is cut
    cache.detach()
    found = gradients(model, (run_last(cache) * weights).sum())
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    slope = sum((found[name] * direction[name]).sum() for name in found)
    # The past is computed before the parameters move, so it stays what it was.
    step = 1e-6
    up, down = last_segment(step, direction, past()), last_segment(-step, direction, past())
    torch.testing.assert_close((up - down) / (2 * step), slope, rtol=1e-5, atol=1e-6)


def test_earlier_graphs_are_let_go(model):
    ids, seq_idx = tokens(1, LENGTH), numbered([set()])
    cache = SegmentCache(model.config)
    model(ids, seq_idx=seq_idx, cache=cache)
    cache.detach()
    held = [t for layer in cache.layers for t in vars(layer).values()]
    held += [t for states in held if isinstance(states, dict) for t in states.values()]
    tensors = [t for t in held if isinstance(t, torch.Tensor)]
    assert tensors
    assert all(tensor.grad_fn is None for tensor in tensors)


def test_gradient_checkpointing_is_refused():
    model = build(MIXED).train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(tokens(1, 4), seq_idx=numbered([set()])[:, :4], cache=SegmentCache(model.config))
