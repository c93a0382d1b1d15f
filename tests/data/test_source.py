"""From files, or from the teacher itself, to rows of tokens."""

import json
import os
import shutil

import pytest
import torch

from hybridize.checkpoints.load import load_model
from hybridize.data.source import load_packed_dataset
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


def test_text_becomes_the_tokenizers_tokens(model, text):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    dataset = load_packed_dataset([text], model=model, length=16, tokens=None)
    flat = []
    for n in range(1, 30):
        flat += [*tokenizer("abc " * n).input_ids, tokenizer.eos_token_id]
    assert dataset.ids.flatten().tolist() == flat[: len(flat) // 16 * 16]
    assert load_packed_dataset([text], model=model, length=16, tokens=40).tokens == 32


def test_rows_are_kept_and_found_until_anything_changes(model, text, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    arguments = {"model": model, "length": 16, "tokens": 64, "cache": cache}
    first = load_packed_dataset([text], **arguments)
    with monkeypatch.context() as patch:
        patch.setattr("hybridize.data.source.read_documents", None)  # is not asked
        again = load_packed_dataset([text], **arguments)
    assert torch.equal(first.ids, again.ids)
    for change in ({"length": 8}, {"tokens": 32}, {"seed": 1}):
        load_packed_dataset([text], **arguments | change)
    with open(text, "a") as file:
        file.write('\n{"text": "more"}')
    load_packed_dataset([text], **arguments)
    assert len(list(cache.iterdir())) == 5


def test_a_file_is_known_by_its_contents_wherever_it_lies(model, text, tmp_path):
    cache = tmp_path / "cache"
    arguments = {"model": model, "length": 16, "tokens": 64, "cache": cache}
    load_packed_dataset([text], **arguments)
    load_packed_dataset([shutil.copy(text, tmp_path / "copy.jsonl")], **arguments)
    assert len(list(cache.iterdir())) == 1
    load_packed_dataset([text, text], **arguments)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "tokenizer.json"])
def test_a_changed_teacher_writes_anew(model, tmp_path, name):
    """A file that is as large and as old as the one before, but another."""
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
        content[-1] ^= 0x80  # a sign
    else:
        content = content.replace(b"\n", b" ", 1)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    load_packed_dataset(["teacher"], **arguments)
    assert path.stat().st_size == before.st_size
    assert len(list(cache.iterdir())) == 2


def test_samples_of_another_dtype_are_others(model, tmp_path):
    arguments = {"model": model, "length": 16, "tokens": 96, "cache": tmp_path / "cache"}
    for dtype in (torch.float32, torch.float64):
        load_packed_dataset(["teacher"], dtype=dtype, **arguments)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_texts_of_nothing_are_left_out(model, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("ab", "", "cd", "")))
    dataset = load_packed_dataset([str(path)], model=model, length=1, tokens=None)
    assert dataset.ids.flatten().tolist().count(2) == 2


def test_the_teacher_writes_the_same_for_the_same_seed(model):
    one, same, other = (
        load_packed_dataset(["teacher"], model=model, length=24, tokens=480, seed=seed).ids
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (20, 24)


@pytest.mark.parametrize("bos", [2, None])
def test_a_beginning_that_is_the_end_does_not_repeat_itself(tmp_path, bos):
    """As Qwen's and GPT-2's ``<|endoftext|>``."""
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, bos_token_id=bos, eos_token_id=2)
    dataset = load_packed_dataset(["teacher"], model=tmp_path / "in", length=64, tokens=640)
    assert len(dataset.ids.unique()) > 30


def test_documents_end_where_the_model_ends_them(model):
    teacher = load_model(model, dtype=torch.float32)
    documents = list(sample_documents(teacher, bos=1, eos=2, tokens=4800, seed=5))
    assert sum(map(len, documents)) >= 4800
    for document in documents:
        assert 2 not in document[1:-1]
        assert 1 not in document[1:]


@pytest.mark.parametrize(
    ("sources", "options", "complaint"),
    [
        (["teacher", "a.txt"], {}, "--data teacher: stands alone"),
        (["teacher"], {"tokens": None}, "say how many tokens"),
        (["teacher"], {"tokens": 3}, "3 tokens are less than a row of 16"),
        (["TEXT"], {"length": 10_000}, "less text than one row of 10000 tokens"),
        (["EMPTY"], {}, "less text than one row of 16 tokens"),
    ],
)
def test_bad_sources(model, text, tmp_path, sources, options, complaint):
    (tmp_path / "empty.txt").write_text("")
    names = {"TEXT": text, "EMPTY": str(tmp_path / "empty.txt")}
    options = {"length": 16, "tokens": 100_000} | options
    with pytest.raises(InputError, match=complaint):
        load_packed_dataset([names.get(s, s) for s in sources], model=model, **options)


def test_a_tokenizer_beyond_the_vocabulary(tmp_path, text):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, vocab_size=6)
    write_tokenizer(tmp_path / "in")
    with pytest.raises(InputError, match="the model's vocabulary has 6"):
        load_packed_dataset([text], model=tmp_path / "in", length=8, tokens=None)


def test_a_model_without_a_beginning(tmp_path):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, bos_token_id=None, eos_token_id=None)
    with pytest.raises(InputError, match="neither bos_token_id nor eos_token_id"):
        load_packed_dataset(["teacher"], model=tmp_path / "in", length=8, tokens=80)


def test_a_beginning_beyond_the_vocabulary(tmp_path):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, eos_token_id=[2, 64])
    with pytest.raises(InputError, match="token 64, but the model's vocabulary has 64"):
        load_packed_dataset(["teacher"], model=tmp_path / "in", length=8, tokens=80)
