"""KL divergences against the formula on whole logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
def test_labels_measure_the_rise_of_the_cross_entropy_where_they_are_given(original, dataset):
    ids, seq_idx = dataset.sequences([0, 3])
    labels = torch.where(torch.arange(LENGTH) % 7 == 3, ids.roll(-1, 1), -100)

    def losses(model):
        log_probs = model(ids, seq_idx=seq_idx, use_cache=False).logits.double().log_softmax(-1)
        counted = labels >= 0
        return -log_probs[counted].gather(1, labels[counted][:, None])[:, 0]

    probe = KLProbe(original, ids, seq_idx, labels)
    expected = losses(changed(original)) - losses(original)
    original.model.blocks[2].mixer.o_proj.weight.mul_(0.5)
    found, inputs = probe.measure(layers=(2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.abs().mean() > 1e-3
    assert sorted(inputs) == [2, 3]
    again, _ = probe.measure(inputs[2], 2)
    assert torch.equal(again, found)
    assert probe.kl() == pytest.approx(float(expected.mean()), rel=1e-4)


class HeadProducts(TorchDispatchMode):
    """Counts the tokens that are multiplied with the head."""

    def __init__(self, head):
        super().__init__()
        self._head = head.data_ptr()
        self.tokens = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default and args[1].data_ptr() == self._head:
            self.tokens += len(args[0])
        return function(*args, **(kwargs or {}))


def test_the_original_is_predicted_once_and_each_measurement_costs_one_product(original, dataset):
    ids, seq_idx = dataset.sequences([0])
    with HeadProducts(original.lm_head.weight) as first:
        probe = KLProbe(original, ids, seq_idx)
    with HeadProducts(original.lm_head.weight) as later:
        probe.kl()
        probe.kl()
    assert first.tokens == 2 * LENGTH  # the logits, and the mean of the head's rows
    assert later.tokens == 2 * LENGTH


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
