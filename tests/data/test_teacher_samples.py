"""What a model writes is drawn from its own distribution, each document by itself."""

import pytest
import torch
from hybrids import LAYOUTS, build

from hybridize.data.teacher_samples import sample_documents

BOS, EOS, STOP = 1, 2, 7


def sampler(layout="mixed", length=40, ends=None):
    """A random model that ends its documents after some ten tokens."""
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


def drawn_one_by_one(model, bos, ends, count, length, seed):
    """The same draws, of chances that come from each row's document so far, without a cache."""
    begin = ends[0] if bos is None else bos
    generator = torch.Generator().manual_seed(seed)
    rows = [[[begin]] for _ in range(count)]
    for _ in range(length - 1):
        chances = torch.stack(
            [
                model(torch.tensor([row[-1]]), use_cache=False).logits[0, -1].float().softmax(-1)
                for row in rows
            ]
        )
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].tolist()
        for row, token in zip(rows, drawn, strict=True):
            ended = len(row[-1]) > 1 and row[-1][-1] in ends
            if ended or (token == begin and begin not in ends):
                row.append([begin])
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
def test_cached_rows_draw_what_each_document_alone_would(layout, bos, eos):
    ends = [] if eos is None else [eos] if isinstance(eos, int) else eos
    model = sampler(layout, ends=[BOS, *ends])
    documents = list(sample_documents(model, bos=bos, eos=eos, tokens=4 * 40, seed=3))
    assert documents == drawn_one_by_one(model, bos, ends, count=4, length=40, seed=3)
    assert sum(map(len, documents)) == 160
    assert len(documents) > 8  # or nothing began in the middle of a row


def pearson(seen, chances):
    """The statistic and its degrees of freedom; what is expected less than five times is pooled."""
    expected = seen.sum() * chances
    rare = expected < 5
    if rare.any():
        seen, expected = (
            torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
            for counts in (seen, expected)
        )
    return ((seen - expected) ** 2 / expected).sum().item(), len(seen) - 1


def test_first_tokens_come_as_often_as_they_should():
    stats = pytest.importorskip("scipy.stats")
    model = sampler("attention only", length=2)
    documents = list(sample_documents(model, bos=BOS, eos=None, tokens=8192, seed=11))
    pairs = torch.tensor([token for document in documents for token in document]).view(4096, 2)
    assert (pairs[:, 0] == BOS).all()
    seen = pairs[:, 1].bincount(minlength=64).double()
    logits = model(torch.tensor([[BOS]])).logits[0, -1]
    statistic, freedom = pearson(seen, logits.softmax(-1))
    assert freedom > 20
    assert statistic < stats.chi2.isf(1e-3, freedom)
    for temperature in (0.8, 1.25):  # the test can tell
        statistic, freedom = pearson(seen, (logits / temperature).softmax(-1))
        assert statistic > stats.chi2.isf(1e-3, freedom)


def test_rows_are_at_most_as_long_as_the_context_and_enough():
    model = sampler("attention only", length=24)
    for tokens in (1, 24, 25, 1000):
        documents = list(sample_documents(model, bos=BOS, eos=None, tokens=tokens, seed=0))
        total = sum(map(len, documents))
        assert tokens <= total < tokens + 24
        assert max(map(len, documents)) <= 24


def test_more_rows_than_fit_at_once_are_other_rows(monkeypatch):
    monkeypatch.setattr("hybridize.data.teacher_samples._MOST_ROWS", 3)
    model = sampler("attention only", length=24)
    documents = list(sample_documents(model, bos=BOS, eos=None, tokens=6 * 24, seed=0))
    flat = torch.tensor([token for document in documents for token in document]).view(6, 24)
    assert len({tuple(row) for row in flat.tolist()}) == 6
