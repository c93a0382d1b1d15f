"""KL divergences against the formula on whole logits."""

import pytest
import torch

from hybridize.data.kl import KLProbe, kl_from_hidden, kl_probes, measure_kl
from hybridize.data.packing import PackedDataset
from hybrids import MIXED, build
from tiny import VOCAB

SEQUENCES, LENGTH = 5, 1500  # two per batch of 4,096 tokens, and one left over
SHORT = {"logits_scaling": 3.0, "embedding_multiplier": 2.0}


@pytest.fixture(scope="module")
def dataset():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCAB, (SEQUENCES, LENGTH), generator=generator, dtype=torch.int32)
    seq_idx = (torch.arange(LENGTH) // 700).expand(SEQUENCES, -1).int()
    return PackedDataset(ids, seq_idx)


@pytest.fixture
def original():
    return build(MIXED[:4], torch.float32, **SHORT)


def changed(model):
    """Return a copy of the model in which one block differs."""
    copy = build(MIXED[:4], torch.float32, **SHORT)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.model.blocks[2].mixer.o_proj.weight.mul_(0.5)
    return copy


@torch.no_grad()
def formula(model, original, dataset):
    """KL(original ‖ model) from whole logits, in float64."""
    ids, seq_idx = dataset.sequences(range(len(dataset)))
    log_p, log_q = (
        each(ids, seq_idx=seq_idx, use_cache=False).logits.double().log_softmax(-1)
        for each in (original, model)
    )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_measure_kl_equals_the_formula(original, dataset):
    model = changed(original)
    expected = formula(model, original, dataset)
    assert expected > 1e-3
    assert measure_kl(model, original, dataset) == pytest.approx(expected, rel=1e-4)
    assert measure_kl(original, original, dataset) == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_probes_measure_a_change_in_place_from_any_block(original, dataset):
    expected = formula(changed(original), original, dataset)
    probes = list(kl_probes(original, dataset))
    assert [probe.num_sequences for probe in probes] == [2, 2, 1]
    inputs = [dict(probe.block_inputs([1, 2])) for probe in probes]
    original.model.blocks[2].mixer.o_proj.weight.mul_(0.5)
    for layer_idx in (None, 1, 2):
        total = 0.0
        for probe, x in zip(probes, inputs, strict=True):
            kl = probe.kl() if layer_idx is None else probe.kl(x[layer_idx], layer_idx)
            total += kl * probe.num_sequences / len(dataset)
        assert total == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_an_unchanged_model_has_no_divergence(original, dataset):
    probe = KLProbe(original, *dataset.sequences([0]))
    assert probe.kl() == pytest.approx(0, abs=1e-6)


def test_kl_from_hidden_is_differentiable(original, dataset):
    ids, seq_idx = dataset.sequences([0])
    hidden = original.model(ids, seq_idx=seq_idx, use_cache=False).last_hidden_state.detach()
    shifted = (hidden + 0.1).requires_grad_()
    kl_from_hidden(original, shifted, original, hidden).backward()
    assert shifted.grad is not None
    assert shifted.grad.abs().sum() > 0
