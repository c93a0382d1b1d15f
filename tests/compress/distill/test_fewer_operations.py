"""Blocks that need not run do not run, and the numbers are the same without them."""

import pytest
import torch
from distilling import write_pair
from torch.utils._python_dispatch import TorchDispatchMode

from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.fp8 import fp8_layers, train_in_fp8
from hybridize.compress.distill.pair import check_pair, load_pair
from hybridize.compress.distill.stages import make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.data.packing import PackedDataset
from tiny import tokens

SEQUENCES, LENGTH = 3, 24
INDICES = torch.arange(SEQUENCES)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A student with six blocks, whose third (``*-M-*-``) replaced attention."""
    return write_pair(tmp_path_factory.mktemp("pair"), keep=(0, 2))


@pytest.fixture
def batch():
    return tokens(SEQUENCES, LENGTH), torch.tensor([0] * 9 + [1] * 15).expand(SEQUENCES, -1)


def load(directories, *, share=True, **options):
    teacher, student, _ = directories
    config = DistillConfig(teacher=teacher, **options)
    pair = load_pair(
        student, teacher, check_pair(student, teacher),
        train=config.train, device=torch.device("cpu"), dtype=torch.float32, share=share,
    )  # fmt: skip
    assert pair.swapped == (2,)
    return pair, config


def record_blocks(model):
    """Return a list to which every call of a block adds the block's index and its output."""
    calls = []
    for index, block in enumerate(model.model.blocks):
        block.register_forward_hook(lambda _, __, y, index=index: calls.append((index, y)))
    return calls


def test_common_blocks_are_those_with_the_same_tensors_and_settings(directories):
    assert load(directories)[0].common_blocks() == 2
    assert load(directories, share=False)[0].common_blocks() == 0
    assert load(directories, train="all")[0].common_blocks() == 0
    changes = {
        "another tensor": (lambda block: block.norm.register_parameter("weight", clone(block)), 1),
        "another setting": (lambda block: setattr(block.norm, "eps", 0.5), 1),
        "another multiplier": (lambda block: setattr(block, "residual_multiplier", 0.5), 1),
        "a trained tensor": (lambda block: block.norm.requires_grad_(True), 1),
    }
    for change, expected in changes.values():
        pair, _ = load(directories)
        change(pair.student.model.blocks[1])
        assert pair.common_blocks() == expected
    for name in ("embedding_multiplier", "rope_parameters"):
        pair, _ = load(directories)
        setattr(pair.student.model.config, name, None)
        assert pair.common_blocks() == 0
    pair, _ = load(directories)
    pair.teacher = None
    assert pair.common_blocks() == 0


def clone(block):
    return torch.nn.Parameter(block.norm.weight.detach().clone(), requires_grad=False)


@pytest.mark.parametrize("options", [{"stages": ("kl",)}, {"stages": ("kl",), "tbptt_length": 9},
                                     {"stages": ("hidden",)}], ids=str)  # fmt: skip
def test_common_blocks_run_once_and_change_no_number(directories, batch, options):
    ids, seq_idx = batch
    results = []
    for share in (True, False):
        pair, config = load(directories, share=share, **options)
        ours, theirs = record_blocks(pair.student), record_blocks(pair.teacher)
        stage = make_stage(config.stages[0], pair, config)
        loss = stage.training_step(ids, seq_idx, INDICES)
        results.append((loss, {name: p.grad for name, p in stage.parameters.items()}))
        assert {index for index, _ in ours} == set(range(2 if share else 0, len_of(stage)))
        assert {index for index, _ in theirs} == set(range(len_of(stage)))
    (loss, gradients), (expected_loss, expected_gradients) = results
    assert loss == expected_loss
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


def len_of(stage):
    """The number of blocks that the stage needs: those up to the new one, or all."""
    return 3 if stage.config.stages == ("hidden",) else 6


def test_align_runs_the_teacher_up_to_the_last_new_block(directories, batch):
    pair, config = load(directories, stages=("align",))
    ours, theirs = record_blocks(pair.student), record_blocks(pair.teacher)
    make_stage("align", pair, config).training_step(*batch, INDICES)
    assert [index for index, _ in theirs] == [0, 1, 2]
    assert ours == []


@pytest.mark.parametrize("mode", ["plain", "gradient_checkpointing", "fp8"])
def test_no_backward_below_the_first_new_block(directories, batch, tmp_path, mode):
    """Without a teacher, the student runs these blocks itself: once, and without a graph."""
    ids, seq_idx = batch
    pair, config = load(directories, share=mode != "fp8", stages=("kl",))
    if mode == "fp8":
        train_in_fp8(pair.student, fp8_layers(directories[1], "fp8", 0), "fp8")
    cache = TeacherCache(tmp_path, PackedDataset(ids.int(), seq_idx.int()), 8, "teacher")
    cache.fill(pair.teacher)
    pair.teacher = None
    if mode == "gradient_checkpointing":
        pair.checkpoint_activations()
    calls = record_blocks(pair.student)
    stage = make_stage("kl", pair, config, TeacherCaches(predictions=cache))
    stage.training_step(ids, seq_idx, INDICES)
    needs_graph = [(index, y.requires_grad) for index, y in calls]
    assert needs_graph[:6] == [(index, index >= 2) for index in range(6)]
    assert all(p.grad is not None for p in stage.parameters.values())
    assert all(
        p.grad is None for n, p in pair.student.named_parameters() if n not in stage.parameters
    )


class HeadProducts(TorchDispatchMode):
    """Counts matrix products with a head, in multiples of the tokens of a batch."""

    def __init__(self, *models):
        super().__init__()
        self.heads = {model.lm_head.weight.untyped_storage().data_ptr() for model in models}
        self.count = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            ours = [a for a in args if a.untyped_storage().data_ptr() in self.heads]
            rows = [len(a) for a in args if a.untyped_storage().data_ptr() not in self.heads]
            self.count += sum(rows) / (SEQUENCES * LENGTH) if ours else 0
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
@pytest.mark.parametrize(
    ("train", "stored", "training", "validation"),
    [("mixers", False, 3, 2), ("mixers", True, 2, 1), ("all", False, 3, 2), ("all", True, 2, 1)],
)
def test_the_head_is_multiplied_as_often_as_needed(
    directories, batch, tmp_path, label_weight, train, stored, training, validation
):
    """Logits of both models, and the gradient of the hidden states; the head's own is a product
    of the other two, which does not read the head."""
    ids, seq_idx = batch
    pair, config = load(directories, train=train, stages=("kl",), label_weight=label_weight)
    caches = TeacherCaches()
    heads = HeadProducts(pair.teacher, pair.student)
    if stored:
        text = PackedDataset(ids.int(), seq_idx.int())
        caches = TeacherCaches(predictions=TeacherCache(tmp_path, text, 8, "teacher"))
        caches.fill(pair)
    stage = make_stage("kl", pair, config, caches)
    with heads:
        stage.training_step(ids, seq_idx, INDICES)
    assert heads.count == training
    heads.count = 0.0
    with heads:
        stage.validation_step(ids, seq_idx, INDICES)
    assert heads.count == validation


@pytest.mark.parametrize("stage", ["align", "hidden"])
def test_stages_that_compare_blocks_multiply_no_head(directories, batch, stage):
    pair, config = load(directories, stages=(stage,))
    with HeadProducts(pair.teacher, pair.student) as heads:
        make_stage(stage, pair, config).training_step(*batch, INDICES)
    assert heads.count == 0
