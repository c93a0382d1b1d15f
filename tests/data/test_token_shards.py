"""Token shards: what is written is read back, and damage is found."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hybridize.data import token_shards
from hybridize.data.packing import Packed, SequencePacker, pack
from hybridize.data.token_shards import (
    TRAINING,
    VALIDATION,
    Index,
    ShardWriter,
    check_shards,
    index_path,
    open_part,
    read_index,
    shard_path,
)
from hybridize.errors import InputError

KEY = "0123456789abcdef"
LENGTH = 8


def write(directory, documents, *, vocab_size=100, per_shard=3, length=LENGTH, part=TRAINING):
    """Write documents in shards of a few sequences; return the index."""
    index = Index(key=KEY, length=length, vocab_size=vocab_size)
    writer, packer = ShardWriter(directory, index), SequencePacker(length)
    writer._per_shard = per_shard
    for number, document in enumerate(documents):
        packer.add(document)
        while packer.is_full():
            if writer.add(packer.take()):
                writer.write(part, {"document": number})
    writer.write(part, None, complete=True)
    return index


def read(directory, vocab_size=100):
    index = read_index(directory, KEY, vocab_size)
    check_shards(directory, index)
    return open_part(directory, index, TRAINING)


documents = st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=12)


@settings(deadline=None, max_examples=50)
@given(documents=documents, length=st.integers(1, 9), data=st.data())
def test_written_sequences_are_read_back(tmp_path_factory, documents, length, data):
    directory = tmp_path_factory.mktemp("text")
    write(directory, documents, length=length)
    dataset, expected = read(directory), pack(documents, length)
    assert (len(dataset), dataset.length) == (len(expected), length)
    assert torch.equal(dataset.ids, expected.ids)
    assert torch.equal(dataset.seq_idx, expected.seq_idx)
    if len(expected):
        chosen = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=10))
        for found, wanted in zip(
            dataset.sequences(chosen), expected.sequences(chosen), strict=True
        ):
            assert torch.equal(found, wanted)
            assert found.dtype == torch.int64


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, torch.uint16), (65_537, torch.int32)])
def test_a_token_takes_two_bytes_if_the_vocabulary_allows(tmp_path, vocab_size, dtype):
    document = [vocab_size - 1, 0, 32_768, 40_000] * 4
    write(tmp_path, [document], vocab_size=vocab_size)
    assert load_file(shard_path(tmp_path, TRAINING, 0))["ids"].dtype == dtype
    assert read(tmp_path, vocab_size).ids.flatten().tolist() == document


def test_the_index_names_every_shard_that_counts(tmp_path):
    write(tmp_path, [list(range(70))])
    assert json.loads(index_path(tmp_path).read_text())["shards"] == {
        TRAINING: [3, 3, 2],
        VALIDATION: [],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json",
        *(f"training-0000{number}.safetensors" for number in range(3)),
    ]


def test_another_text_is_not_read(tmp_path):
    write(tmp_path, [list(range(70))])
    for key, vocab_size in (("other", 100), (KEY, 101)):
        with pytest.raises(InputError, match="belongs to another text"):
            read_index(tmp_path, key, vocab_size)


def damage_file(directory, name, data):
    """Change or cut off some bytes of a file."""
    path = directory / name
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            offset = data.draw(st.integers(0, len(content) - 1))
            content[offset] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_files_are_found(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("text")
    write(directory, [[5, 6, 7], list(range(40)), [1] * 20])
    expected = read(directory).sequences(range(7))
    name = data.draw(st.sampled_from(["index.json", "training-00001.safetensors"]))
    damage_file(directory, name, data)
    try:
        found = read(directory).sequences(range(7))
    except InputError as error:
        message = str(error)
        assert str(directory / name) in message
        assert "\n" not in message
        assert "delete its directory" in message
    else:  # the damage has no meaning, such as another white space in JSON
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, [list(range(70))])
    shard_path(tmp_path, TRAINING, 1).unlink()
    with pytest.raises(
        InputError, match=r"training-00001\.safetensors: the packed text is damaged"
    ):
        read(tmp_path)


def test_shards_in_another_order_are_found(tmp_path):
    write(tmp_path, [list(range(70))])
    first, second = (shard_path(tmp_path, TRAINING, number) for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(InputError, match="belongs to another text"):
        read(tmp_path)


def shard(**changes):
    tensors = {
        "ids": torch.arange(16, dtype=torch.int32).view(2, 8).to(torch.uint16),
        "first_start": torch.tensor([0, 2, 3], dtype=torch.int32),
        "starts": torch.tensor([1, 5, 2], dtype=torch.int32),
    }
    return tensors | changes


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"ids": torch.full((2, 8), 100).to(torch.uint16)}, "token id is not below 100"),
        ({"ids": torch.zeros(2, 8, dtype=torch.int32)}, "wrong dtype"),
        ({"ids": torch.zeros(2, 7).to(torch.uint16)}, "wrong shape"),
        ({"ids": torch.zeros(1, 8).to(torch.uint16)}, "wrong shape"),
        ({"first_start": torch.tensor([0, 3], dtype=torch.int32)}, "wrong shape"),
        ({"first_start": torch.tensor([0, 4, 3], dtype=torch.int32)}, "starts are inconsistent"),
        ({"first_start": torch.tensor([0, 2, 2], dtype=torch.int32)}, "starts are inconsistent"),
        ({"first_start": torch.tensor([1, 2, 3], dtype=torch.int32)}, "starts are inconsistent"),
        ({"starts": torch.tensor([5, 1, 2], dtype=torch.int32)}, "starts are inconsistent"),
        ({"starts": torch.tensor([1, 1, 2], dtype=torch.int32)}, "starts are inconsistent"),
        ({"starts": torch.tensor([0, 1, 2], dtype=torch.int32)}, "starts are inconsistent"),
        ({"starts": torch.tensor([1, 8, 2], dtype=torch.int32)}, "starts are inconsistent"),
        ({"starts": torch.tensor([1, -1, 2], dtype=torch.int32)}, "starts are inconsistent"),
        ({"loss_mask": torch.zeros(2, 8)}, "its tensors are"),
    ],
)
def test_inconsistent_shards_are_found(tmp_path, monkeypatch, changes, complaint):
    """Even with a right checksum."""
    index = Index(key=KEY, length=8, vocab_size=100)
    writer = ShardWriter(tmp_path, index)
    for _ in range(2):
        writer.add(Packed(np.zeros(8, dtype=np.int32), np.zeros(0, dtype=np.int32)))
    with monkeypatch.context() as patch:
        save = token_shards.save_checked
        patch.setattr(
            token_shards, "save_checked", lambda path, _, about: save(path, shard(**changes), about)
        )
        writer.write(TRAINING, None, complete=True)
    if complaint is None:
        assert read(tmp_path).seq_idx.tolist() == [
            [0, 1, 1, 1, 1, 2, 2, 2],
            [0, 0, 1, 1, 1, 1, 1, 1],
        ]
        return
    with pytest.raises(InputError, match=rf"training-00000\.safetensors: .*{complaint}"):
        read(tmp_path)


def test_another_kind_of_file_is_not_a_shard(tmp_path):
    write(tmp_path, [list(range(20))])
    save_file({"ids": torch.zeros(2, 8)}, shard_path(tmp_path, TRAINING, 0))
    with pytest.raises(InputError, match="its checksum is wrong"):
        read(tmp_path)
