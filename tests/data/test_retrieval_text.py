"""Text for retrieval: every labeled token is in the text before it, and can be found there."""

import pytest
import torch

from hybridize.data import retrieval_text
from hybridize.data.packing import PackedDataset
from hybridize.data.retrieval_text import (
    NO_LABEL,
    far_tokens,
    key_value_text,
    ordinary_tokens,
    repeated_text,
)
from hybrids import MIXED, build

TOKENS = torch.tensor([3, 5, 6, 7, 9, 11, 12, 14, 15, 16, 20, 21, 22, 23, 30, 31, 32, 33, 34, 35])


def documents(text):
    """Yield ids and labels of each document, shorter ones at the end of a sequence included."""
    for ids, seq_idx, labels in zip(text.ids, text.seq_idx, text.labels, strict=True):
        for number in seq_idx.unique():
            yield ids[seq_idx == number].tolist(), labels[seq_idx == number].tolist()


def test_repeated_text_is_repeated_at_several_distances():
    text = repeated_text(TOKENS, 4, 70, seed=1)
    assert text.ids.shape == text.seq_idx.shape == text.labels.shape == (4, 70)
    assert set(text.ids.unique().tolist()) <= set(TOKENS.tolist())
    halves = set()
    for ids, labels in documents(text):
        labeled = [i for i, label in enumerate(labels) if label != NO_LABEL]
        if not labeled:
            continue  # cut before the second copy
        half = labeled[0]
        halves.add(half)
        assert labeled == list(range(half, len(ids) - 1))
        for i in labeled:
            assert labels[i] == ids[i + 1] == ids[i + 1 - half]
    assert halves == {8, 17, 35}


@pytest.mark.parametrize("separator", [None, 1])
def test_every_labeled_value_follows_its_key_earlier(separator):
    text = key_value_text(TOKENS, separator, 4, 96, seed=2)
    counts = set()
    for ids, labels in documents(text):
        labeled = [i for i, label in enumerate(labels) if label != NO_LABEL]
        for i in labeled:
            first = ids.index(ids[i])
            assert first < labeled[0]
            assert labels[i] == ids[i + 1] == ids[first + 1]
        counts.add(len(labeled))
        if separator is not None:
            assert ids[2::3] == [separator] * len(ids[2::3])
    assert len(counts) > 1  # documents of different lengths
    assert max(counts) == len(TOKENS) // 2  # no more pairs than different tokens


@pytest.mark.parametrize("length", [2, 3, 5, 16])
@pytest.mark.parametrize("count", [2, 3, 20])
def test_short_sequences_and_few_tokens(length, count):
    for text in (
        repeated_text(TOKENS[:count], 3, length, seed=0),
        key_value_text(TOKENS[:count], None, 3, length, seed=0),
    ):
        assert text.ids.shape == text.labels.shape == (3, length)
        assert torch.isin(text.ids, TOKENS[:count]).all()


def test_the_same_seed_gives_the_same_text_and_another_seed_another_one():
    a, b, c = (repeated_text(TOKENS, 2, 40, seed).ids for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_ordinary_tokens_are_those_of_the_text_that_are_not_special():
    ids = torch.tensor([[4, 9, 4], [2, 0, 7]], dtype=torch.int32)
    assert ordinary_tokens(ids, {0, 2, 63}).tolist() == [4, 7, 9]


@torch.no_grad()
def test_far_tokens_are_those_whose_loss_rises_with_a_short_context(monkeypatch):
    monkeypatch.setattr(retrieval_text, "_CONTEXT", 6)
    monkeypatch.setattr(retrieval_text, "_GAIN", 0.05)
    monkeypatch.setattr(retrieval_text, "_BATCH", 60)  # two sequences
    model = build(MIXED[:4], torch.float32)
    ids = torch.randint(3, 64, (5, 30), generator=torch.Generator().manual_seed(0))
    seq_idx = (torch.arange(30) >= 20).int().expand(5, -1)
    text = far_tokens(model, PackedDataset(ids.int(), seq_idx.contiguous()))
    assert torch.equal(text.ids, ids)
    expected = torch.full_like(ids, NO_LABEL)
    for row in range(5):
        for document in (range(20), range(20, 30)):
            for token in document[1:]:
                # Windows start at 0, 6, 12, …; the one that sees the least context counts, but
                # at least 6 tokens.
                start = max(document[0], token // 6 * 6 - 6)

                def loss(first, row=row, token=token):
                    logits = model(ids[row : row + 1, first:token], use_cache=False).logits
                    return -logits[0, -1].log_softmax(-1)[ids[row, token]]

                if loss(start) - loss(document[0]) > 0.05:
                    expected[row, token - 1] = ids[row, token]
    assert torch.equal(text.labels, expected)
    assert 0 < (expected >= 0).sum() < 60
