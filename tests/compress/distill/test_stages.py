"""Losses and gradients of the stages, compared with plain formulas in float64."""

import pytest
import torch
from distilling import load_in_float64, write_pair
from safetensors.torch import load_file

from hybridize.compress.distill.batches import batch_indices, split_batch
from hybridize.compress.distill.block_cache import BlockCache
from hybridize.compress.distill.stages import STAGES, make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.data.packing import PackedDataset
from hybridize.modeling.layers.mamba2 import Mamba2
from tiny import VOCAB, tokens

SEQUENCES, LENGTH = 3, 24
INDICES = torch.arange(SEQUENCES)


@pytest.fixture
def directories(tmp_path):
    return write_pair(tmp_path)


def load(directories, **options):
    teacher, student, _ = directories
    return load_in_float64(teacher, student, **options)


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


def texts(sequences: int) -> PackedDataset:
    seq_idx = torch.tensor([0] * 9 + [1] * 15, dtype=torch.int32).expand(sequences, -1)
    return PackedDataset(tokens(sequences, LENGTH).int(), seq_idx)


def test_the_teacher_cache_gives_the_loss_of_the_teacher(directories, tmp_path):
    pair, config = load(directories)
    dataset = texts(70)
    cache = TeacherCache(tmp_path / "cache", dataset, VOCAB, "teacher")
    cache.fill(pair.teacher)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    indices = torch.tensor([69, 3, 64])
    ids, seq_idx = dataset.sequences(indices)
    expected = make_stage("kl", pair, config).validation_step(ids, seq_idx, indices)
    pair.teacher = None
    stage = make_stage("kl", pair, config, TeacherCaches(predictions=cache))
    loss = stage.validation_step(ids, seq_idx, indices)
    assert loss == pytest.approx(expected, rel=5e-3)  # float16


@pytest.mark.parametrize("top", [1, 5, 40])
def test_stored_predictions_give_a_lower_bound_of_the_divergence(directories, tmp_path, top):
    pair, config = load(directories)
    dataset = texts(6)
    caches = []
    for name, count in (("some", top), ("more", top + 10), ("all", VOCAB)):
        caches.append(TeacherCache(tmp_path / name, dataset, count, "teacher"))
        caches[-1].fill(pair.teacher)
    indices = torch.arange(6)
    some, more, whole = (
        make_stage("kl", pair, config, TeacherCaches(predictions=cache)).validation_step(
            *dataset.sequences(indices), indices
        )
        for cache in caches
    )
    assert 0 < some < more <= whole * (1 + 1e-4)  # all are rounded to float16


def test_the_teacher_is_asked_once_for_a_text(directories, tmp_path, monkeypatch):
    pair, _ = load(directories)
    calls = []
    pair.teacher.model.register_forward_hook(lambda *_: calls.append(1))

    def count(dataset, top=8, teacher="teacher"):
        """Fill a cache, and return the number of forward passes that it took."""
        del calls[:]
        TeacherCache(tmp_path, dataset, top, teacher).fill(pair.teacher)
        return len(calls)

    short, long = texts(64), texts(100)
    long = PackedDataset(torch.cat([short.ids, long.ids[64:]]), long.seq_idx)
    assert count(short) == 1
    assert count(short) == 0
    assert count(long) == 1  # only the sequences after the first 64
    assert count(long) == 0
    assert count(short, top=9) == 1
    assert count(short, teacher="another") == 1
    assert count(PackedDataset(short.ids, torch.zeros_like(short.seq_idx))) == 1
    assert count(PackedDataset((short.ids + 1) % VOCAB, short.seq_idx)) == 1


def test_a_file_of_another_teacher_is_not_read(directories, tmp_path, capsys):
    pair, _ = load(directories)
    dataset = texts(3)
    cache = TeacherCache(tmp_path / "ours", dataset, 4, "teacher")
    cache.fill(pair.teacher)
    (path,) = (tmp_path / "ours").iterdir()
    # Not the file's bytes: the order of the metadata is random. The tensors are mapped.
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}
    pair.teacher.lm_head.weight.data.mul_(2)
    TeacherCache(tmp_path / "theirs", dataset, 4, "another").fill(pair.teacher)
    pair.teacher.lm_head.weight.data.div_(2)
    (other,) = (tmp_path / "theirs").iterdir()
    path.write_bytes(other.read_bytes())
    cache.fill(pair.teacher)
    assert "belongs to another teacher or text" in capsys.readouterr().err
    torch.testing.assert_close(load_file(path), good, rtol=0, atol=0)
    assert [each.name for each in (tmp_path / "ours").iterdir()] == [path.name]


def test_align_with_stored_blocks(directories, batch, tmp_path):
    """Two of three sequences fit. Their loss and gradients are those of the rounded numbers."""
    pair, config = load(directories, stages=("align",))
    ids, seq_idx = batch
    expected = make_stage("align", pair, config)
    loss = expected.training_step(ids, seq_idx, INDICES)
    gradients = {name: p.grad.clone() for name, p in expected.parameters.items()}
    for parameter in expected.parameters.values():
        parameter.grad = None

    dataset = PackedDataset(ids.int(), seq_idx.int())
    size = 2 * len(pair.swapped) * LENGTH * 32 * 2
    order, blocks = torch.tensor([2, 0, 1]), pair.swapped
    arguments = (dataset, order, blocks, 32, 3 * size - 1, "teacher")
    cache = BlockCache(tmp_path / "cache", *arguments)
    cache.fill(pair.teacher)
    assert [index in cache for index in range(3)] == [True, False, True]
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    assert len(sizes) == 2
    assert all(size < each < size + 1024 for each in sizes)  # the header

    runs = []
    pair.teacher.model.embed_tokens.register_forward_hook(lambda _, x, y: runs.append(len(x[0])))
    stage = make_stage("align", pair, config, TeacherCaches(blocks=cache))
    assert stage.training_step(ids, seq_idx, INDICES) == pytest.approx(loss, rel=1e-3)
    assert runs == [1]  # the teacher ran on the sequence that is not stored
    for name, parameter in stage.parameters.items():
        error = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
        assert error < 0.01, name  # bfloat16
    stored = torch.tensor([2, 0])
    del runs[:]
    pair.teacher = None  # is not needed
    stage.training_step(ids[stored], seq_idx[stored], stored)


def test_stored_blocks_are_the_inputs_and_outputs_of_attention(directories, tmp_path):
    pair, _ = load(directories)
    dataset = texts(5)
    cache = BlockCache(tmp_path, dataset, torch.arange(5), pair.swapped, 32, 1 << 30, "teacher")
    cache.fill(pair.teacher)
    ids, seq_idx = dataset.sequences([3, 1])
    stored = {index: (x, y) for index, x, y in cache.read(torch.tensor([3, 1]), ids.device)}
    assert tuple(stored) == pair.swapped
    with torch.no_grad():
        x = pair.teacher.model.embed_tokens(ids)
        context = pair.teacher.model.block_context(x, seq_idx)
        for index, block in enumerate(pair.teacher.model.blocks):
            if index in stored:
                u = block.norm(x)
                for actual, expected in zip(
                    stored[index], (u, block.mixer(u, context)), strict=True
                ):
                    assert actual.dtype == torch.bfloat16
                    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-30)
            x = block(x, context)


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


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("count", "at_once"), [(1, 4), (7, 7), (7, 4), (12, 3), (10, 16)])
def test_the_parts_of_a_batch_are_a_weighted_mean(count, at_once, size):
    """Every process computes as many parts of as many sequences; no sequence counts twice."""
    losses = torch.randn(count, dtype=torch.float64)
    shares = [split_batch(torch.arange(count), at_once, rank, size) for rank in range(size)]
    shapes = [[len(part.indices) for part in parts] for parts in shares]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(size * length < at_once + size for length in shapes[0])
    means = [sum(p.weight * losses[p.indices].mean() for p in parts) for parts in shares]
    torch.testing.assert_close(sum(means) / size, losses.mean())


@pytest.mark.parametrize("train", ["mixers", "all"])
def test_checkpointing_of_segments_changes_no_gradient(directories, batch, train, monkeypatch):
    """Blocks that run again read the states of the segment before, not those of their own."""
    gradients, calls = [], []
    advance = Mamba2.forward
    monkeypatch.setattr(
        Mamba2, "forward", lambda self, *args: calls.append(1) or advance(self, *args)
    )
    for checkpointing in (False, True):
        options = {"tbptt_length": 7, "train": train, "gradient_checkpointing": checkpointing}
        pair, config = load(directories, **options)
        if checkpointing:
            pair.checkpoint_activations()
        calls.clear()
        stage = make_stage("kl", pair, config)
        loss = stage.training_step(*batch, INDICES)
        gradients.append((loss, {n: p.grad for n, p in stage.parameters.items()}, len(calls)))
    (plain, expected, runs), (loss, found, more_runs) = gradients
    assert loss == plain
    assert more_runs == 2 * runs
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)
