"""Packing keeps every token once and records where documents start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.data.packing import PackedDataset, pack, read_packed_dataset, save_packed_dataset
from hybridize.errors import InputError

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
    for row, numbers in enumerate(dataset.seq_idx.tolist()):
        expected = [number for _, number in flat[row * length : (row + 1) * length]]
        order = list(dict.fromkeys(expected))
        assert numbers == [order.index(number) for number in expected]


def test_sequences_and_splits():
    dataset = pack([[1, 2, 3], [4, 5, 6, 7, 8], [9]], 3)
    ids, seq_idx = dataset.sequences([2, 0])
    assert ids.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert seq_idx.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert ids.dtype == seq_idx.dtype == torch.int64
    training, held_out = dataset.split(1)
    assert (training.ids.tolist(), held_out.ids.tolist()) == ([[1, 2, 3], [4, 5, 6]], [[7, 8, 9]])
    assert [len(part) for part in dataset.split(3)] == [0, 3]
    for held_out in (4, -1):
        with pytest.raises(ValueError, match="held out"):
            dataset.split(held_out)


def test_a_saved_dataset_is_read_back(tmp_path):
    dataset = pack([[1, 2, 3, 4], [5, 6]], 2)
    save_packed_dataset(dataset, tmp_path / "packed")
    again = read_packed_dataset(tmp_path / "packed", 100)
    assert torch.equal(again.ids, dataset.ids)
    assert torch.equal(again.seq_idx, dataset.seq_idx)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@settings(deadline=None, max_examples=30)
@given(content=st.binary(max_size=60))
def test_a_file_of_other_content_is_bad_input(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("packed") / "packed"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a packed dataset"):
        read_packed_dataset(path, 100)


def test_tensors_of_different_shapes_are_bad_input(tmp_path):
    short = PackedDataset(
        torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int32)
    )
    save_packed_dataset(short, tmp_path / "packed")
    with pytest.raises(InputError, match="not a packed dataset"):
        read_packed_dataset(tmp_path / "packed", 100)


@pytest.mark.parametrize(
    ("ids", "seq_idx"),
    [
        ([[100, 0]], [[0, 0]]),
        ([[-1, 0]], [[0, 0]]),
        ([[1, 2]], [[1, 0]]),
        ([[1, 2]], [[0, 2]]),
        ([[1, 2]], [[-1, 0]]),
    ],
)
def test_a_damaged_dataset_is_bad_input(tmp_path, ids, seq_idx):
    dataset = PackedDataset(*(torch.tensor(x, dtype=torch.int32) for x in (ids, seq_idx)))
    save_packed_dataset(dataset, tmp_path / "packed")
    with pytest.raises(InputError, match="the packed dataset is damaged; delete it"):
        read_packed_dataset(tmp_path / "packed", 100)
