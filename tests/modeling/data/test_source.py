"""From files, or from the teacher itself, to rows of tokens."""

import json

import pytest
import torch

from hybridize.errors import InputError
from hybridize.modeling.data.sample import sample_documents
from hybridize.modeling.data.source import load_windows
from hybridize.modeling.load import load_model
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
    windows = load_windows([text], model=model, length=16, tokens=None)
    flat = []
    for n in range(1, 30):
        flat += [*tokenizer("abc " * n).input_ids, tokenizer.eos_token_id]
    assert windows.ids.flatten().tolist() == flat[: len(flat) // 16 * 16]
    assert load_windows([text], model=model, length=16, tokens=40).tokens == 32


def test_rows_are_kept_and_found_until_anything_changes(model, text, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    arguments = {"model": model, "length": 16, "tokens": 64, "cache": cache}
    first = load_windows([text], **arguments)
    with monkeypatch.context() as patch:
        patch.setattr("hybridize.modeling.data.source.read_documents", None)  # is not asked
        again = load_windows([text], **arguments)
    assert torch.equal(first.ids, again.ids)
    for change in ({"length": 8}, {"tokens": 32}, {"seed": 1}):
        load_windows([text], **arguments | change)
    with open(text, "a") as file:
        file.write('\n{"text": "more"}')
    load_windows([text], **arguments)
    assert len(list(cache.iterdir())) == 5


def test_the_teacher_writes_the_same_for_the_same_seed(model):
    one, same, other = (
        load_windows(["teacher"], model=model, length=24, tokens=480, seed=seed).ids
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (20, 24)


@torch.no_grad()
def test_samples_are_drawn_from_the_models_own_distribution(model):
    """One row, drawn once more from runs of the whole text so far, without a cache."""
    teacher = load_model(model, dtype=torch.float64)
    drawn = list(sample_documents(teacher, bos=1, eos=None, tokens=48, seed=9))
    generator = torch.Generator().manual_seed(9)
    ids = torch.tensor([[1]])
    while ids.shape[1] < 48:
        chances = teacher(ids).logits[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    assert [token for document in drawn for token in document] == ids[0].tolist()


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
        load_windows([names.get(s, s) for s in sources], model=model, **options)


def test_a_tokenizer_beyond_the_vocabulary(tmp_path, text):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, vocab_size=6)
    write_tokenizer(tmp_path / "in")
    with pytest.raises(InputError, match="the model's vocabulary has 6"):
        load_windows([text], model=tmp_path / "in", length=8, tokens=None)


def test_a_model_without_a_beginning(tmp_path):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, bos_token_id=None, eos_token_id=None)
    with pytest.raises(InputError, match="neither bos_token_id nor eos_token_id"):
        load_windows(["teacher"], model=tmp_path / "in", length=8, tokens=80)
