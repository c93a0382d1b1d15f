"""Losses and gradients of the stages, compared with plain formulas in float64."""

import pytest
import torch
from distilling import write_pair

from hybridize.compress.distill.batches import batch_indices
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import check_pair, load_pair
from hybridize.compress.distill.stages import STAGES, make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.data.packing import PackedDataset
from tiny import VOCAB, tokens

SEQUENCES, LENGTH = 3, 24
INDICES = torch.arange(SEQUENCES)


@pytest.fixture
def directories(tmp_path):
    return write_pair(tmp_path)


def load(directories, **options):
    teacher, student, _ = directories
    config = DistillConfig(teacher=teacher, **options)
    pair = load_pair(
        student,
        teacher,
        check_pair(student, teacher),
        train=config.train,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    pair.teacher.double()
    pair.student.double()
    return pair, config


@pytest.fixture
def batch():
    return tokens(SEQUENCES, LENGTH), torch.tensor([0] * 9 + [1] * 15).expand(SEQUENCES, -1)


def assert_gradients(parameters, expected):
    assert set(parameters) <= set(expected)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("train", ["mixers", "all"])
@pytest.mark.parametrize(("temperature", "label_weight"), [(1.0, 0.0), (2.0, 0.3)])
def test_kl_equals_the_divergence_of_logits(directories, batch, train, temperature, label_weight):
    pair, config = load(
        directories, train=train, temperature=temperature, label_weight=label_weight
    )
    ids, seq_idx = batch
    stage = make_stage("kl", pair, config)
    loss = stage.training_step(ids, seq_idx, INDICES)
    assert stage.validation_step(ids, seq_idx, INDICES) == pytest.approx(loss, rel=1e-12)

    with torch.no_grad():
        target = pair.teacher(ids, seq_idx=seq_idx, use_cache=False).logits
    logits = pair.student(ids, seq_idx=seq_idx, use_cache=False).logits
    p = (target / temperature).softmax(-1)
    each = temperature**2 * (p * (p.log() - (logits / temperature).log_softmax(-1))).sum(-1)
    labels = torch.full_like(ids, -1)
    labels[:, :8], labels[:, 9:-1] = ids[:, 1:9], ids[:, 10:]
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    mixed = (1 - label_weight) * each - label_weight * log_probs
    expected = torch.where(labels >= 0, mixed, each).mean()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    names = list(stage.parameters)
    gradients = torch.autograd.grad(expected, [stage.parameters[name] for name in names])
    assert_gradients(stage.parameters, dict(zip(names, gradients, strict=True)))


def test_align_compares_each_mixer_with_its_attention_block(directories, batch):
    pair, config = load(directories, train="all")
    ids, seq_idx = batch
    stage = make_stage("align", pair, config)
    loss = stage.training_step(ids, seq_idx, INDICES)
    assert set(stage.parameters) == set(pair.mixers())
    assert all(
        parameter.grad is None
        for name, parameter in pair.student.named_parameters()
        if name not in stage.parameters
    )
    x = pair.teacher.model.embed_tokens(ids)
    context = pair.teacher.model.block_context(x, seq_idx)
    errors = []
    for index, block in enumerate(pair.teacher.model.blocks):
        if index in pair.swapped:
            u = block.norm(x)
            target = block.mixer(u, context)
            output = pair.student.model.blocks[index].mixer(u, context)
            power = target.square().sum((1, 2))
            errors.append(((output - target).square().sum((1, 2)) / power).mean())
        x = block(x, context)
    mean = torch.stack(errors).mean()
    assert loss == pytest.approx(float(mean.detach()), rel=1e-6)
    names = list(stage.parameters)
    gradients = torch.autograd.grad(mean, [stage.parameters[name] for name in names])
    for name, expected in zip(names, gradients, strict=True):  # the stage sums in float32
        torch.testing.assert_close(stage.parameters[name].grad, expected, rtol=1e-4, atol=1e-7)


def test_hidden_compares_the_hidden_states_after_new_blocks(directories, batch):
    pair, config = load(directories)
    ids, seq_idx = batch
    stage = make_stage("hidden", pair, config)
    loss = stage.training_step(ids, seq_idx, INDICES)
    hidden_states = []
    for model in (pair.student, pair.teacher):
        x = model.model.embed_tokens(ids)
        context = model.model.block_context(x, seq_idx)
        outputs = []
        for block in model.model.blocks:
            x = block(x, context)
            outputs.append(x)
        hidden_states.append(outputs)
    ours, theirs = hidden_states
    errors = []
    for i in pair.swapped:
        power = theirs[i].square().sum((1, 2))
        errors.append(((ours[i] - theirs[i]).square().sum((1, 2)) / power).mean())
    assert loss == pytest.approx(float(torch.stack(errors).mean().detach()), rel=1e-5)
    assert all(parameter.grad is not None for parameter in stage.parameters.values())


def test_segments_do_not_change_the_kl_loss(directories, batch):
    ids, seq_idx = batch
    pair, config = load(directories)
    whole = make_stage("kl", pair, config).validation_step(ids, seq_idx, INDICES)
    for tbptt_length in (5, 9, 24, 100):
        pair, config = load(directories, tbptt_length=tbptt_length)
        stage = make_stage("kl", pair, config)
        assert stage.training_step(ids, seq_idx, INDICES) == pytest.approx(whole, rel=1e-9)
        assert all(parameter.grad is not None for parameter in stage.parameters.values())


def test_the_teacher_cache_gives_the_loss_of_the_teacher(directories, tmp_path):
    pair, config = load(directories)
    dataset = PackedDataset(tokens(70, LENGTH).int(), torch.zeros(70, LENGTH, dtype=torch.int32))
    cache = TeacherCache(tmp_path / "cache", VOCAB)
    cache.fill(pair.teacher, dataset)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    indices = torch.tensor([69, 3, 64])
    ids, seq_idx = dataset.sequences(indices)
    expected = make_stage("kl", pair, config).validation_step(ids, seq_idx, indices)
    pair.teacher = None
    loss = make_stage("kl", pair, config, cache).validation_step(ids, seq_idx, indices)
    assert loss == pytest.approx(expected, rel=2e-3)  # float16


def test_student_and_teacher_share_frozen_tensors(directories):
    pair, _ = load(directories)
    theirs = {id(p) for p in pair.teacher.parameters()}
    for name, parameter in pair.student.named_parameters():
        assert (id(parameter) in theirs) == (name not in pair.mixers())
        assert parameter.requires_grad == (name in pair.mixers())
    pair, _ = load(directories, train="all")
    theirs = {id(p) for p in pair.teacher.parameters()}
    assert not any(id(p) in theirs for p in pair.student.parameters())


def test_an_epoch_contains_every_sequence_once():
    order = torch.cat([batch_indices(step, 4, 10, seed=3) for step in range(15)]).tolist()
    for epoch in range(6):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]
    assert batch_indices(7, 4, 10, seed=3).tolist() == order[28:32]
    assert batch_indices(0, 4, 10, seed=4).tolist() != order[:4]


def test_every_registered_stage_can_be_made(directories):
    pair, config = load(directories)
    for name in STAGES:
        assert make_stage(name, pair, config).parameters
