"""What the stages compute, against plain formulas on whole models in float64."""

import pytest
import torch
from distilling import write_pair

from hybridize.compress.distill.batches import rows_of_step
from hybridize.compress.distill.pair import check_pair, load_pair
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.stages import STAGES, make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.data.packing import PackedDataset
from tiny import VOCAB, tokens

ROWS, LENGTH = 3, 24
EVERY = torch.arange(ROWS)


@pytest.fixture
def directories(tmp_path):
    return write_pair(tmp_path)


def load(directories, **options):
    teacher, student, _ = directories
    settings = DistillSettings(**options)
    pair = load_pair(
        student,
        teacher,
        check_pair(student, teacher),
        train=settings.train,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    pair.teacher.double()
    pair.student.double()
    return pair, settings


@pytest.fixture
def batch():
    return tokens(ROWS, LENGTH), torch.tensor([0] * 9 + [1] * 15).expand(ROWS, -1)


def close(got, want):
    assert set(got) <= set(want)
    for name, parameter in got.items():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("train", ["mixers", "all"])
@pytest.mark.parametrize(("temperature", "label_weight"), [(1.0, 0.0), (2.0, 0.3)])
def test_kl_is_the_divergence_of_whole_logits(directories, batch, train, temperature, label_weight):
    pair, settings = load(directories, train=train, temperature=temperature,
                          label_weight=label_weight)  # fmt: skip
    ids, seq_idx = batch
    stage = make_stage("kl", pair, settings)
    loss = stage.learn(ids, seq_idx, EVERY)
    assert stage.measure(ids, seq_idx, EVERY) == pytest.approx(loss, rel=1e-12)

    with torch.no_grad():
        wanted = pair.teacher(ids, seq_idx=seq_idx, use_cache=False).logits
    logits = pair.student(ids, seq_idx=seq_idx, use_cache=False).logits
    p = (wanted / temperature).softmax(-1)
    each = temperature**2 * (p * (p.log() - (logits / temperature).log_softmax(-1))).sum(-1)
    labels = torch.full_like(ids, -1)
    labels[:, :8], labels[:, 9:-1] = ids[:, 1:9], ids[:, 10:]
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    mixed = (1 - label_weight) * each - label_weight * log_probs
    want = torch.where(labels >= 0, mixed, each).mean()
    assert loss == pytest.approx(float(want), rel=1e-9)
    names = list(stage.parameters)
    found = torch.autograd.grad(want, [stage.parameters[name] for name in names])
    close(stage.parameters, dict(zip(names, found, strict=True)))


def test_align_trains_each_mixer_on_its_attentions_output(directories, batch):
    pair, settings = load(directories, train="all")
    ids, seq_idx = batch
    stage = make_stage("align", pair, settings)
    loss = stage.learn(ids, seq_idx, EVERY)
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
            want = block.mixer(u, context)
            got = pair.student.model.blocks[index].mixer(u, context)
            power = want.square().sum((1, 2))
            errors.append(((got - want).square().sum((1, 2)) / power).mean())
        x = block(x, context)
    mean = torch.stack(errors).mean()
    assert loss == pytest.approx(float(mean), rel=1e-6)
    names = list(stage.parameters)
    found = torch.autograd.grad(mean, [stage.parameters[name] for name in names])
    for name, want in zip(names, found, strict=True):  # sums of float32 in between
        torch.testing.assert_close(stage.parameters[name].grad, want, rtol=1e-4, atol=1e-7)


def test_hidden_compares_the_streams_behind_the_new_blocks(directories, batch):
    pair, settings = load(directories)
    ids, seq_idx = batch
    stage = make_stage("hidden", pair, settings)
    loss = stage.learn(ids, seq_idx, EVERY)
    streams = []
    for model in (pair.student, pair.teacher):
        x = model.model.embed_tokens(ids)
        context = model.model.block_context(x, seq_idx)
        mine = []
        for block in model.model.blocks:
            x = block(x, context)
            mine.append(x)
        streams.append(mine)
    errors = []
    for i in pair.swapped:
        power = streams[1][i].square().sum((1, 2))
        errors.append(((streams[0][i] - streams[1][i]).square().sum((1, 2)) / power).mean())
    assert loss == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
    assert all(parameter.grad is not None for parameter in stage.parameters.values())


def test_segments_lose_nothing_but_gradients_across(directories, batch):
    ids, seq_idx = batch
    pair, settings = load(directories)
    whole = make_stage("kl", pair, settings).measure(ids, seq_idx, EVERY)
    for segment in (5, 9, 24, 100):
        pair, settings = load(directories, segment=segment)
        stage = make_stage("kl", pair, settings)
        assert stage.learn(ids, seq_idx, EVERY) == pytest.approx(whole, rel=1e-9)
        assert all(parameter.grad is not None for parameter in stage.parameters.values())


def test_what_was_written_down_teaches_like_the_teacher(directories, tmp_path):
    pair, settings = load(directories)
    dataset = PackedDataset(tokens(70, LENGTH).int(), torch.zeros(70, LENGTH, dtype=torch.int32))
    cache = TeacherCache(tmp_path / "said", VOCAB)
    cache.fill(pair.teacher, dataset)
    assert len(list((tmp_path / "said").iterdir())) == 2
    rows = torch.tensor([69, 3, 64])
    ids, seq_idx = dataset.sequences(rows)
    asked, read = (make_stage("kl", pair, settings) for _ in range(2))
    want = asked.measure(ids, seq_idx, rows)
    pair.teacher = None
    read.cached = cache
    assert read.measure(ids, seq_idx, rows) == pytest.approx(want, rel=2e-3)  # float16


def test_frozen_tensors_are_in_memory_once(directories):
    pair, _ = load(directories)
    theirs = {id(p) for p in pair.teacher.parameters()}
    for name, parameter in pair.student.named_parameters():
        assert (id(parameter) in theirs) == (name not in pair.mixers())
        assert parameter.requires_grad == (name in pair.mixers())
    pair, _ = load(directories, train="all")
    theirs = {id(p) for p in pair.teacher.parameters()}
    assert not any(id(p) in theirs for p in pair.student.parameters())


def test_every_row_comes_once_before_any_comes_again():
    drawn = torch.cat([rows_of_step(step, 4, 10, seed=3) for step in range(15)]).tolist()
    for epoch in range(6):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert rows_of_step(7, 4, 10, seed=3).tolist() == drawn[28:32]
    assert rows_of_step(0, 4, 10, seed=4).tolist() != drawn[:4]


def test_all_stages_can_be_made(directories):
    pair, settings = load(directories)
    for name in STAGES:
        assert make_stage(name, pair, settings).parameters
