"""Shares of the sources, and the held-out documents."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.data.mixing import Mixture, TokenSource
from hybridize.errors import InputError

LENGTH = 16


def source(number, documents, weight=None):
    """A source whose token ids say which source and which document they are from."""

    def read(position):
        for index in range(0 if position is None else position[0], len(documents)):
            yield (index,), np.array(documents[index], dtype=np.int32)

    return TokenSource(f"`data={number}`", weight, read)


def texts(number, count, rng, longest=60):
    """Documents of one source; no two have the same tokens."""
    return [
        [number * 1_000_000 + index] * int(rng.integers(1, longest + 1)) for index in range(count)
    ]


def mixture(documents, weights=None, seed=0, state=None, length=LENGTH):
    weights = weights or [None] * len(documents)
    sources = [source(n, d, w) for n, (d, w) in enumerate(zip(documents, weights, strict=True))]
    return Mixture(sources, length, seed, state)


def origins(sequences):
    return np.array([sequence.ids[0] // 1_000_000 for sequence in sequences])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.5, 0.3, 0.15, 0.05], [1.0, 99.0]])
def test_every_part_of_the_text_has_the_shares_of_the_weights(weights, seed):
    rng = np.random.default_rng(3)
    documents = [texts(n, 2000, rng) for n in range(len(weights))]
    mixed = mixture(documents, weights, seed)
    found = origins([sequence for sequence, _ in zip(mixed, range(2000), strict=False)])
    assert len(found) == 2000
    for part in (found[:500], found[700:1200], found):
        for number, weight in enumerate(weights):
            assert abs((part == number).mean() - weight / sum(weights)) < 0.01


def test_the_seed_changes_the_order_of_the_sources():
    rng = np.random.default_rng(3)
    documents = [texts(n, 100, rng) for n in range(2)]
    orders = {tuple(origins(list(mixture(documents, [0.7, 0.3], seed)))) for seed in range(4)}
    assert len(orders) > 1
    assert origins(list(mixture(documents, [0.7, 0.3], 2))).tolist() in map(list, orders)


def test_without_weights_every_token_is_used_once(capsys):
    rng = np.random.default_rng(3)
    documents = [texts(0, 300, rng), texts(1, 20, rng), texts(2, 1, rng, longest=10)]
    sequences = list(mixture(documents))
    tokens = np.concatenate([sequence.ids for sequence in sequences])
    total = sum(len(document) for each in documents for document in each)
    assert len(tokens) == total // LENGTH * LENGTH
    ids, counts = np.unique(tokens, return_counts=True)
    lengths = {document[0]: len(document) for each in documents for document in each}
    assert all(count <= lengths[token] for token, count in zip(ids, counts, strict=True))
    found = origins(sequences)[:20]
    assert abs((found == 0).mean() - 0.5) < 0.1
    notes = capsys.readouterr().err
    assert "`data=1`: has ended after" in notes
    assert "the other sources go on" in notes
    assert "`data=0`" not in notes


def test_with_weights_a_source_that_ends_is_read_again(capsys):
    rng = np.random.default_rng(3)
    documents = [texts(0, 300, rng), texts(1, 20, rng)]
    sequences = list(mixture(documents, [0.5, 0.5]))
    found = origins(sequences)
    assert abs(found.mean() - 0.5) < 0.01
    tokens = np.concatenate([sequence.ids for sequence in sequences])
    assert set(tokens) >= {document[0] for document in documents[1]}
    # The text ends when the larger source has been read once.
    first = tokens[tokens < 1_000_000]
    assert len(first) > sum(map(len, documents[0])) - LENGTH
    assert len(first) <= sum(map(len, documents[0]))
    notes = capsys.readouterr().err
    assert notes.count("`data=1`: has ended after") == 1
    assert "it is read again" in notes


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_held_out_documents_are_not_trained_on(data):
    """Nor are others with the same tokens, in any source and in any round."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    documents = [texts(n, data.draw(st.integers(15, 60)), rng) for n in range(2)]
    copies = st.lists(st.sampled_from(documents[0][:6]), max_size=3)
    documents[1] += data.draw(copies)
    documents[0] += data.draw(copies)
    weights = data.draw(st.sampled_from([None, [0.5, 0.5], [0.25, 0.75]]))
    mixed = mixture(documents, weights)
    held_out = np.concatenate([sequence.ids for sequence in mixed.hold_out(4)])
    training = np.concatenate([sequence.ids for sequence in mixed])
    assert len(held_out) == 4 * LENGTH
    assert not set(held_out) & set(training)
    shares = [sum(held_out // 1_000_000 == n) / len(held_out) for n in (0, 1)]
    assert shares == (weights or [0.5, 0.5])


def test_every_source_has_validation_sequences():
    rng = np.random.default_rng(3)
    documents = [texts(n, 100, rng) for n in range(3)]
    held_out = origins(mixture(documents, [0.98, 0.01, 0.01]).hold_out(16))
    assert [int((held_out == n).sum()) for n in range(3)] == [14, 1, 1]
    with pytest.raises(InputError, match="`validation_sequences=2`: give at least 3"):
        mixture(documents).hold_out(2)


def test_an_only_document_is_cut(capsys):
    document = list(range(100))
    mixed = mixture([[document]])
    (held_out,) = mixed.hold_out(1)
    assert held_out.ids.tolist() == document[:16]
    training = np.concatenate([sequence.ids for sequence in mixed])
    assert training.tolist() == document[16:96]
    assert "its last one is cut; its last 84 tokens are trained on" in capsys.readouterr().err


def test_the_rest_of_a_long_held_out_document_is_not_used(capsys):
    mixed = mixture([[list(range(100)), [7] * 40]])
    mixed.hold_out(1)
    assert {token for sequence in mixed for token in sequence.ids.tolist()} == {7}
    assert "84 tokens of a document are not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ([[[1] * 8]], "`data=0`: less text than one sequence of 16 tokens"),
        ([[[1] * 40]], "`data=0`: has 2 sequences of 16 tokens, and 3 are held out"),
        ([[[1] * 400], []], "`data=1`: less text than one sequence"),
    ],
)
def test_a_source_that_is_too_short_is_named(documents, complaint):
    with pytest.raises(InputError, match=complaint):
        list(mixture(documents).hold_out(3))


def test_an_empty_source_is_named():
    for weights in (None, [0.5, 0.5]):
        with pytest.raises(InputError, match="`data=1`: has no text"):
            list(mixture([[[1] * 40], []], weights))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    weights=st.sampled_from([None, [0.2, 0.3, 0.5], [8.0, 1.0, 1.0]]),
    length=st.sampled_from([5, 16, 50]),
    held_out=st.sampled_from([0, 3]),
)
def test_a_mixture_continues_from_its_state(seed, weights, length, held_out):
    """With the same bits, from any state, even after many interruptions."""
    rng = np.random.default_rng(seed)
    documents = [texts(n, int(rng.integers(8, 40)), rng, longest=90) for n in range(3)]
    whole, current = (mixture(documents, weights, 5, None, length) for _ in range(2))
    for each in (whole, current):
        each.hold_out(held_out)
    for sequence in whole:
        if rng.random() < 0.3:
            state = json.loads(json.dumps(current.state()))
            current = mixture(documents, weights, 5, state, length)
        again = next(iter(current))
        assert np.array_equal(again.ids, sequence.ids)
        assert np.array_equal(again.starts, sequence.starts)
    assert next(iter(current), None) is None
