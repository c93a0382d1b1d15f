"""The choice of the text on which the selection ``recall`` measures."""

import math

import pytest
import torch

import hybridize
from hybridize.checkpoints.load import load_model
from hybridize.conversion import retrieval
from hybridize.conversion.retrieval import retrieval_texts
from hybridize.data import retrieval_text
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from tiny import tokens, write_stock, write_tokenizer

ORDINARY = 20  # different tokens in the text, besides the special ones


@pytest.fixture
def directory(tmp_path):
    write_stock(tmp_path / "in", "llama")
    return tmp_path / "in"


@pytest.fixture
def dataset():
    ids = 3 + tokens(6, 128) % ORDINARY
    ids[:, ::9] = 2  # the end of a document
    return PackedDataset(ids.int(), torch.zeros_like(ids, dtype=torch.int32))


def texts_of(directory, dataset):
    return retrieval_texts(load_model(directory, dtype=torch.float32), directory, dataset, 0)


def predict(monkeypatch, losses):
    """Let the model have these losses on ``repeated`` and ``key-value`` text, in this order."""
    given = iter(losses)
    monkeypatch.setattr(
        retrieval,
        "next_token_losses",
        lambda model, ids, seq_idx: torch.full((len(ids), ids.shape[1] - 1), next(given)),
    )


@pytest.mark.parametrize(
    ("losses", "kinds"),
    [
        ((0.1, 0.1), ["repeated", "key-value"]),
        ((0.1, 0.9), ["repeated"]),
        ((0.9, 0.1), ["key-value"]),
    ],
)
def test_the_kinds_that_the_model_predicts_are_used(directory, dataset, monkeypatch, losses, kinds):
    predict(monkeypatch, [loss * math.log(ORDINARY) for loss in losses])
    write_tokenizer(directory)
    texts = texts_of(directory, dataset)
    assert list(texts) == kinds
    for text in texts.values():
        assert text.ids.shape == (3, 128)  # together as many tokens as the dataset
        assert (text.labels >= 0).any()
        assert not (text.ids == 2).any()


def test_a_tokenizer_is_not_needed(directory, dataset, monkeypatch):
    predict(monkeypatch, (0.0, 0.0))
    texts = texts_of(directory, dataset)
    assert len(texts) == 2
    assert not (texts["repeated"].ids == 2).any()  # config.json names this token too


def test_models_that_retrieve_nothing_synthetic_are_measured_on_the_text(
    directory, dataset, monkeypatch
):
    monkeypatch.setattr(retrieval_text, "_GAIN", 0.1)
    texts = texts_of(directory, dataset)  # random weights retrieve nothing
    assert list(texts) == ["far"]
    assert (texts["far"].labels >= 0).any(1).all()
    assert torch.isin(texts["far"].ids, dataset.ids).all()


def test_a_text_in_which_nothing_is_retrieved_is_an_error(directory, dataset):
    short = PackedDataset(dataset.ids[:, :32], dataset.seq_idx[:, :32])
    with pytest.raises(InputError, match=r"retrieves tokens neither .*192 tokens of text; give an"):
        texts_of(directory, short)


def test_few_different_tokens_make_no_synthetic_text(directory, monkeypatch):
    monkeypatch.setattr(retrieval_text, "_GAIN", 0.01)
    ids = 3 + tokens(6, 128) % 5
    texts = texts_of(directory, PackedDataset(ids.int(), torch.zeros_like(ids).int()))
    assert list(texts) == ["far"]


def test_convert_selects_by_recall(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval_text, "_GAIN", 0.1)
    write_tokenizer(directory)
    result = hybridize.convert(
        directory,
        tmp_path / "out",
        attention=2,
        select="recall",
        calibration="teacher",
        calibration_tokens=1024,
    )
    assert [len(point.kept) for point in result.curve] == [4, 3, 2, 1, 0]
    assert result.curve[0].recall == result.curve[0].kl == 0.0
    assert all(point.recall is not None for point in result.curve)
    assert result.kept == result.curve[2].kept
    assert result.selection.forwards > 1
    assert (tmp_path / "out" / "sensitivity.png").is_file()
    with pytest.raises(InputError, match="`select=recall` chooses which blocks"):
        hybridize.convert(directory, tmp_path / "no", select="recall", keep=(1,))
