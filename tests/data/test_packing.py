"""Packing keeps every token once and records where documents start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.data.packing import PackedDataset, SequencePacker, pack

documents = st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=12)


@settings(deadline=None)
@given(documents=documents, length=st.integers(1, 12), tokens=st.none() | st.integers(1, 80))
def test_packing_concatenates_documents(documents, length, tokens):
    dataset = pack(iter(documents), length, tokens)
    flat = [(token, number) for number, doc in enumerate(documents) for token in doc]
    limit = len(flat) if tokens is None else min(tokens, len(flat))
    flat = flat[: limit // length * length]
    assert dataset.ids.flatten().tolist() == [token for token, _ in flat]
    assert (len(dataset), dataset.length, dataset.tokens) == (
        len(flat) // length,
        length,
        len(flat),
    )
    assert dataset.ids.dtype == dataset.seq_idx.dtype == torch.int32
    for row, numbers in enumerate(dataset.seq_idx.tolist()):
        expected = [number for _, number in flat[row * length : (row + 1) * length]]
        order = list(dict.fromkeys(expected))
        assert numbers == [order.index(number) for number in expected]


@settings(deadline=None)
@given(documents=documents, length=st.integers(1, 12))
def test_a_packer_says_where_the_next_sequence_begins(documents, length):
    packer, flat = SequencePacker(length), []
    ends = {}
    for number, document in enumerate(documents):
        packer.add(document, number)
        flat += document
        ends[number] = len(flat)
        while packer.is_full():
            packer.take()
        label, used = packer.first
        position = ends[label] - len(documents[label]) + used
        assert position == len(flat) // length * length
        assert [token for part in packer.rest() for token in part] == flat[position:]


def test_sequences_and_splits():
    dataset = pack([[1, 2, 3], [4, 5, 6, 7, 8], [9]], 3)
    ids, seq_idx = dataset.sequences([2, 0])
    assert ids.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert seq_idx.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert ids.dtype == seq_idx.dtype == torch.int64
    training, held_out = dataset.split(1)
    assert (training.ids.tolist(), held_out.ids.tolist()) == ([[1, 2, 3], [4, 5, 6]], [[7, 8, 9]])
    assert held_out.sequences([0])[0].tolist() == [[7, 8, 9]]
    assert [len(part) for part in dataset.split(3)] == [0, 3]
    for held_out in (4, -1):
        with pytest.raises(ValueError, match="held out"):
            dataset.split(held_out)


def test_sequences_outside_of_a_view_are_refused():
    first, _ = pack([[1, 2, 3], [4, 5, 6]], 3).split(1)
    for index in (1, -1):
        with pytest.raises(IndexError, match="there are 1 sequences"):
            first.sequences([index])


def test_joined_datasets_are_one():
    dataset = pack([[1, 2, 3], [4, 5, 6, 7, 8], [9]], 3)
    joined = PackedDataset.joined(dataset.split(2))
    assert torch.equal(joined.ids, dataset.ids)
    assert torch.equal(joined.seq_idx, dataset.seq_idx)
    assert joined.sequences([2, 0, 1])[0].tolist() == [[7, 8, 9], [1, 2, 3], [4, 5, 6]]
    assert joined.first(4).ids.tolist() == [[1, 2, 3], [4, 5, 6]]
