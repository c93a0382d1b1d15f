"""Sampled documents follow the model's distribution, and do not depend on each other."""

import pytest
import torch

from hybridize.data.teacher_samples import sample_documents
from hybrids import LAYOUTS, build

BOS, EOS, STOP = 1, 2, 7


def sampler(layout="mixed", length=40, ends=None):
    """A random model whose documents have about ten tokens."""
    model = build(LAYOUTS[layout])
    model.config.max_position_embeddings = length
    if ends is not None:
        weight = model.lm_head.weight
        head = torch.nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
        head.weight.data.copy_(weight.detach())
        head.bias.data.zero_()
        head.bias.data[ends] = 3.0
        model.lm_head = head
    return model.requires_grad_(False)


def sampled_one_by_one(model, bos, ends, count, length, seed):
    """The same samples, with probabilities from each row's current document, without a cache."""
    start = ends[0] if bos is None else bos
    generator = torch.Generator().manual_seed(seed)
    rows = [[[start]] for _ in range(count)]
    for _ in range(length - 1):
        probabilities = torch.stack(
            [
                model(torch.tensor([row[-1]]), use_cache=False).logits[0, -1].float().softmax(-1)
                for row in rows
            ]
        )
        sampled = torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist()
        for row, token in zip(rows, sampled, strict=True):
            ended = len(row[-1]) > 1 and row[-1][-1] in ends
            if ended or (token == start and start not in ends):
                row.append([start])
            else:
                row[-1].append(token)
    return [document for row in rows for document in row]


@pytest.mark.parametrize(
    ("layout", "bos", "eos"),
    [
        ("mixed", BOS, EOS),
        ("mixed", BOS, [EOS, STOP]),
        ("mixed", BOS, None),
        ("mixed", None, EOS),
        ("mixed", EOS, EOS),
        ("mamba only", BOS, EOS),
        ("attention only", None, [EOS, STOP]),
    ],
)
def test_rows_with_a_cache_give_the_documents_sampled_without_one(layout, bos, eos):
    ends = [] if eos is None else [eos] if isinstance(eos, int) else eos
    model = sampler(layout, ends=[BOS, *ends])
    documents = list(sample_documents(model, bos=bos, eos=eos, tokens=4 * 40, seed=3))
    assert documents == sampled_one_by_one(model, bos, ends, count=4, length=40, seed=3)
    assert sum(map(len, documents)) == 160
    assert len(documents) > 8  # some documents start in the middle of a row


def pearson(counts, probabilities):
    """Pearson's chi-squared statistic and its degrees of freedom.

    Tokens with an expected count below five are pooled.
    """
    expected = counts.sum() * probabilities
    rare = expected < 5
    if rare.any():
        counts, expected = (
            torch.cat([values[~rare], values[rare].sum(0, keepdim=True)])
            for values in (counts, expected)
        )
    return ((counts - expected) ** 2 / expected).sum().item(), len(counts) - 1


def test_first_tokens_follow_the_predicted_distribution():
    stats = pytest.importorskip("scipy.stats")
    model = sampler("attention only", length=2)
    documents = list(sample_documents(model, bos=BOS, eos=None, tokens=8192, seed=11))
    pairs = torch.tensor([token for document in documents for token in document]).view(4096, 2)
    assert (pairs[:, 0] == BOS).all()
    counts = pairs[:, 1].bincount(minlength=64).double()
    logits = model(torch.tensor([[BOS]])).logits[0, -1]
    statistic, freedom = pearson(counts, logits.softmax(-1))
    assert freedom > 20
    assert statistic < stats.chi2.isf(1e-3, freedom)
    for temperature in (0.8, 1.25):  # other distributions are rejected
        statistic, freedom = pearson(counts, (logits / temperature).softmax(-1))
        assert statistic > stats.chi2.isf(1e-3, freedom)


def test_rows_fit_into_the_context_and_hold_enough_tokens():
    model = sampler("attention only", length=24)
    for tokens in (1, 24, 25, 1000):
        documents = list(sample_documents(model, bos=BOS, eos=None, tokens=tokens, seed=0))
        total = sum(map(len, documents))
        assert tokens <= total < tokens + 24
        assert max(map(len, documents)) <= 24


def test_further_rounds_sample_different_rows(monkeypatch):
    monkeypatch.setattr("hybridize.data.teacher_samples._MAX_ROWS", 3)
    model = sampler("attention only", length=24)
    documents = list(sample_documents(model, bos=BOS, eos=None, tokens=6 * 24, seed=0))
    flat = torch.tensor([token for document in documents for token in document]).view(6, 24)
    assert len({tuple(row) for row in flat.tolist()}) == 6
