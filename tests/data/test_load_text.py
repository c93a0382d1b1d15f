"""Packed datasets from files and from the teacher's samples, and their cache."""

import json
import os
import shutil

import pytest
import torch

from hybridize.checkpoints.load import load_model
from hybridize.data.load_text import load_packed_dataset
from hybridize.data.teacher_samples import sample_documents
from hybridize.errors import InputError
from tiny import write_stock, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "in"
    write_stock(directory, "llama", num_hidden_layers=2, max_position_embeddings=48)
    write_tokenizer(directory)
    return directory


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": "abc " * n}) for n in range(1, 30)))
    return str(path)


def test_text_is_tokenized_and_packed(model, text):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    dataset = load_packed_dataset([text], model=model, length=16, tokens=None)
    flat = []
    for n in range(1, 30):
        flat += [*tokenizer("abc " * n).input_ids, tokenizer.eos_token_id]
    assert dataset.ids.flatten().tolist() == flat[: len(flat) // 16 * 16]
    assert load_packed_dataset([text], model=model, length=16, tokens=40).tokens == 32


def test_the_cache_serves_the_same_arguments_only(model, text, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    arguments = {"model": model, "length": 16, "tokens": 64, "cache": cache}
    first = load_packed_dataset([text], **arguments)
    with monkeypatch.context() as patch:
        patch.setattr("hybridize.data.token_streams.read_source", None)  # must not be called
        again = load_packed_dataset([text], **arguments)
    assert torch.equal(first.ids, again.ids)
    for change in ({"length": 8}, {"tokens": 32}, {"seed": 1}):
        load_packed_dataset([text], **arguments | change)
    with open(text, "a") as file:
        file.write('\n{"text": "more"}')
    load_packed_dataset([text], **arguments)
    assert len(list(cache.iterdir())) == 5


def test_the_cache_identifies_files_by_content(model, text, tmp_path):
    cache = tmp_path / "cache"
    arguments = {"model": model, "length": 16, "tokens": 64, "cache": cache}
    load_packed_dataset([text], **arguments)
    load_packed_dataset([shutil.copy(text, tmp_path / "copy.jsonl")], **arguments)
    assert len(list(cache.iterdir())) == 1
    load_packed_dataset([text, text], **arguments)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "tokenizer.json"])
def test_a_changed_teacher_is_sampled_again(model, tmp_path, name):
    """Even if the changed file has the same size and date."""
    teacher, cache = shutil.copytree(model, tmp_path / "teacher"), tmp_path / "cache"
    arguments = {"model": teacher, "length": 16, "tokens": 96, "cache": cache}
    first = load_packed_dataset(["teacher"], **arguments)
    again = load_packed_dataset(["teacher"], **arguments)
    assert torch.equal(first.ids, again.ids)
    assert len(list(cache.iterdir())) == 1
    path = teacher / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 0x80  # flip a sign
    else:
        content = content.replace(b"\n", b" ", 1)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    load_packed_dataset(["teacher"], **arguments)
    assert path.stat().st_size == before.st_size
    assert len(list(cache.iterdir())) == 2


def test_the_cache_keeps_dtypes_apart(model, tmp_path):
    arguments = {"model": model, "length": 16, "tokens": 96, "cache": tmp_path / "cache"}
    for dtype in (torch.float32, torch.float64):
        load_packed_dataset(["teacher"], dtype=dtype, **arguments)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_empty_texts_are_skipped(model, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("ab", "", "cd", "")))
    dataset = load_packed_dataset([str(path)], model=model, length=1, tokens=None)
    assert dataset.ids.flatten().tolist().count(2) == 2


def test_the_seed_determines_what_the_teacher_generates(model):
    first, again, other = (
        load_packed_dataset(["teacher"], model=model, length=24, tokens=480, seed=seed).ids
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (20, 24)


@pytest.mark.parametrize("bos", [2, None])
def test_a_token_that_starts_and_ends_documents_is_not_repeated(tmp_path, bos):
    """Such as ``<|endoftext|>`` of Qwen and GPT-2."""
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, bos_token_id=bos, eos_token_id=2)
    dataset = load_packed_dataset(["teacher"], model=tmp_path / "in", length=64, tokens=640)
    assert len(dataset.ids.unique()) > 30


def test_documents_end_at_the_end_token(model):
    teacher = load_model(model, dtype=torch.float32)
    documents = list(sample_documents(teacher, bos=1, eos=2, tokens=4800, seed=5))
    assert sum(map(len, documents)) >= 4800
    for document in documents:
        assert 2 not in document[1:-1]
        assert 1 not in document[1:]


@pytest.mark.parametrize(
    ("sources", "options", "complaint"),
    [
        (["teacher", "a.txt"], {}, "`data=teacher` cannot be combined"),
        (["teacher"], {"tokens": None}, "give the number of tokens to sample"),
        (["teacher"], {"tokens": 3}, "3 tokens are less than one sequence of 16"),
        (["TEXT"], {"length": 10_000}, "less text than one sequence of 10000 tokens"),
        (["EMPTY"], {}, "less text than one sequence of 16 tokens"),
    ],
)
def test_bad_sources(model, text, tmp_path, sources, options, complaint):
    (tmp_path / "empty.txt").write_text("")
    names = {"TEXT": text, "EMPTY": str(tmp_path / "empty.txt")}
    options = {"length": 16, "tokens": 100_000} | options
    with pytest.raises(InputError, match=complaint):
        load_packed_dataset([names.get(s, s) for s in sources], model=model, **options)


def test_a_tokenizer_larger_than_the_vocabulary_is_bad_input(tmp_path, text):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, vocab_size=6)
    write_tokenizer(tmp_path / "in")
    with pytest.raises(InputError, match="the model's vocabulary has only 6 tokens"):
        load_packed_dataset([text], model=tmp_path / "in", length=8, tokens=None)


def test_sampling_needs_a_start_token(tmp_path):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, bos_token_id=None, eos_token_id=None)
    with pytest.raises(InputError, match="neither a bos_token_id nor an eos_token_id"):
        load_packed_dataset(["teacher"], model=tmp_path / "in", length=8, tokens=80)


def test_a_start_token_outside_the_vocabulary_is_bad_input(tmp_path):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, eos_token_id=[2, 64])
    with pytest.raises(InputError, match="eos_token_id is 64, but its vocabulary has 64 tokens"):
        load_packed_dataset(["teacher"], model=tmp_path / "in", length=8, tokens=80)
