"""The selection, compared with swaps in whole models, one by one."""

import json
import sys
from dataclasses import asdict

import pytest
import torch

import hybridize
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.conversion import selection
from hybridize.conversion.calibration import new_mixer
from hybridize.conversion.first_values import first_values
from hybridize.conversion.plan import MambaChoice, mamba_sizes
from hybridize.conversion.selection import selection_curve
from hybridize.conversion.swap_runs import Batch, SwapRuns
from hybridize.data.packing import PackedDataset
from hybridize.data.retrieval_text import RetrievalText
from hybridize.errors import HybridizeError
from hybridize.modeling.layers.sizes import AttentionSizes
from tiny import tokens, write_stock, write_tokenizer


@pytest.fixture
def teacher(tmp_path):
    write_stock(tmp_path / "in", "llama")
    return load_model(tmp_path / "in", dtype=torch.float32)


def new_mixers(directory):
    with CheckpointReader(directory) as reader:
        format_, config = read_config(reader)
        source = CheckpointTensors(reader, format_, config)
        mixers = {}
        for index, attention in enumerate(config.blocks):
            if isinstance(attention, AttentionSizes):
                sizes = mamba_sizes(attention, config.hidden_size, MambaChoice())
                start = first_values(source, index, sizes, config, "attention", 0)
                mixers[index] = new_mixer(config, sizes, index, start, torch.device("cpu"))
    return mixers


@pytest.fixture
def dataset():
    ids = tokens(130, 40).int()
    return PackedDataset(ids, torch.zeros_like(ids))  # two batches


@pytest.fixture
def retrieval():
    """Text with made-up labels, of two kinds and sizes."""
    texts = {}
    for kind, sequences, length, every in (("a", 6, 30, 3), ("b", 9, 20, 5)):
        ids = tokens(sequences, length, seed=len(texts) + 5)
        labels = torch.where(torch.arange(length) % every == 1, ids.roll(-1, 1), -100)
        texts[kind] = RetrievalText(ids, torch.zeros_like(ids), labels)
    return texts


def with_kept(teacher, mixers, kept, measure):
    """Return what ``measure`` returns when all attention blocks but the kept ones are swapped."""
    blocks = teacher.model.blocks
    before = [block.mixer for block in blocks]
    for i, index in enumerate(sorted(mixers)):
        if i not in kept:
            blocks[index].mixer = mixers[index]
    result = measure()
    for block, mixer in zip(blocks, before, strict=True):
        block.mixer = mixer
    return result


def divergence(teacher, mixers, dataset):
    """Return a function of the kept blocks: the KL divergence, from whole logits in float64."""
    ids = dataset.ids.long()

    def log_probs():
        return teacher(ids, use_cache=False).logits.double().log_softmax(-1)

    want = log_probs()

    def kl(kept):
        got = with_kept(teacher, mixers, kept, log_probs)
        return float((want.exp() * (want - got)).sum(-1).mean())

    return kl


@torch.no_grad()
def test_every_point_is_the_best_of_all_single_swaps(tmp_path, teacher, dataset):
    mixers = new_mixers(tmp_path / "in")
    before = [block.mixer for block in teacher.model.blocks]
    curve = selection_curve(teacher, mixers, dataset)
    assert [block.mixer for block in teacher.model.blocks] == before
    kl = divergence(teacher, mixers, dataset)
    assert [len(point.kept) for point in curve.points] == [4, 3, 2, 1, 0]
    for previous, point in zip(curve.points, curve.points[1:], strict=False):
        fewer = [tuple(k for k in previous.kept if k != swapped) for swapped in previous.kept]
        choices = {kept: kl(kept) for kept in fewer}
        assert point.kept == min(choices, key=choices.__getitem__)
        assert point.kl == pytest.approx(choices[point.kept], rel=1e-4)
        assert point.recall is None


@torch.no_grad()
def test_recall_chooses_by_the_loss_on_labeled_tokens(tmp_path, teacher, dataset, retrieval):
    mixers = new_mixers(tmp_path / "in")
    curve = selection_curve(teacher, mixers, dataset, retrieval)

    def losses():
        found = []
        for text in retrieval.values():
            log_probs = teacher(text.ids, use_cache=False).logits.double().log_softmax(-1)
            counted = text.labels >= 0
            found.append(-log_probs[counted].gather(1, text.labels[counted][:, None]).mean())
        return float(sum(found) / len(found))  # each kind has the same weight

    start, kl = losses(), divergence(teacher, mixers, dataset)
    rises = {
        point.kept: with_kept(teacher, mixers, point.kept, losses) - start for point in curve.points
    }
    for point in curve.points[1:]:
        assert point.recall == pytest.approx(rises[point.kept], rel=1e-4)
        assert point.kl == pytest.approx(kl(point.kept), rel=1e-4)
    singles = {
        kept: with_kept(teacher, mixers, kept, losses)
        for kept in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
    }
    assert curve.points[1].kept == min(singles, key=singles.__getitem__)
    assert curve.points[1].kept != selection_curve(teacher, mixers, dataset).points[1].kept


@torch.no_grad()
def test_the_reported_cost_is_what_was_computed(tmp_path, teacher, dataset, retrieval):
    write_stock(tmp_path / "deep", "llama", num_hidden_layers=7)
    model = load_model(tmp_path / "deep", dtype=torch.float32)
    mixers = new_mixers(tmp_path / "deep")
    everything = dataset.tokens + sum(text.ids.numel() for text in retrieval.values())
    blocks = model.model.blocks
    for texts in (None, retrieval):
        counted = {"ends": 0, "blocks": 0}

        def count(module, inputs, output, counted=counted):
            counted["ends" if module is model.model.norm else "blocks"] += output[..., 0].numel()

        hooks = [module.register_forward_hook(count) for module in (*blocks, model.model.norm)]
        cost = selection_curve(model, mixers, dataset, texts).cost
        for hook in hooks:
            hook.remove()
        total = dataset.tokens if texts is None else everything
        assert cost.runs == pytest.approx(counted["ends"] / total - 1)  # 1 is the teacher's run
        assert cost.forwards == pytest.approx(counted["blocks"] / total / len(blocks))
        assert len(mixers) <= cost.runs <= 3 * len(mixers)
        assert cost.seconds > 0


@torch.no_grad()
def test_less_memory_needs_more_computing_for_the_same_measurements(tmp_path, teacher, dataset):
    mixers = new_mixers(tmp_path / "in")
    nbytes = 2 * dataset.tokens * 32 * 4  # of one block's inputs
    found = []
    for memory in (4 * nbytes, 2 * nbytes, 1):
        parts = [[Batch("plain", *dataset.sequences(range(len(dataset))))]]
        runs = SwapRuns(teacher, mixers, parts, {"plain": 1.0}, memory)
        losses = [runs.measure(index, 0) for index in sorted(mixers)]
        losses += runs.accept(sorted(mixers)[1])
        losses.append(runs.measure(sorted(mixers)[3], 0))
        runs.restore()
        found.append((runs.forwards, torch.stack(losses)))
    assert found[0][0] < found[1][0] < found[2][0]
    for _, losses in found[1:]:
        torch.testing.assert_close(losses, found[0][1], rtol=1e-6, atol=1e-9)


def test_keep_with_the_chosen_blocks_writes_the_same_bytes(tmp_path):
    write_stock(tmp_path / "in", "llama", max_position_embeddings=64)
    write_tokenizer(tmp_path / "in")
    text = {"calibration": "teacher", "calibration_tokens": 512}
    chosen = hybridize.convert(
        tmp_path / "in", tmp_path / "a", attention=2, select="sensitivity", **text
    )
    kept = hybridize.convert(tmp_path / "in", tmp_path / "b", keep=chosen.kept, **text)
    assert len(chosen.kept) == 2
    assert chosen.kept in [point.kept for point in chosen.curve]
    assert chosen.errors == kept.errors
    a, b = ((tmp_path / d / "model.safetensors").read_bytes() for d in "ab")
    assert a == b
    picture = (tmp_path / "a" / "sensitivity.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    record = json.loads((tmp_path / "a" / "hybridize.json").read_text())["steps"][-1]
    assert [point["kept"] for point in record["metrics"]["sensitivity"]] == [
        list(point.kept) for point in chosen.curve
    ]
    assert record["metrics"]["selection"] == asdict(chosen.selection)
    assert kept.selection is None


def test_a_missing_matplotlib_is_reported_before_anything_is_measured(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(
        "hybridize.data.calibration.load_calibration", lambda *_, **__: pytest.fail("too late")
    )
    with pytest.raises(HybridizeError, match=r'pip install "hybridize\[train\]"'):
        hybridize.convert(tmp_path / "in", tmp_path / "out", select="sensitivity")


def test_select_tokens_bounds_the_measured_text_only(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama", max_position_embeddings=64)
    write_tokenizer(tmp_path / "in")
    measured = []
    curve = selection_curve
    monkeypatch.setattr(
        selection, "selection_curve", lambda *args: measured.append(args[2]) or curve(*args)
    )
    options = {"attention": 2, "calibration": "teacher", "calibration_tokens": 512}
    for limit in (65, 10_000):
        hybridize.convert(
            tmp_path / "in", tmp_path / str(limit), select="sensitivity",
            select_tokens=limit, **options,
        )  # fmt: skip
    assert [len(dataset) for dataset in measured] == [2, 8]  # sequences of 64 tokens
    assert torch.equal(measured[0].ids, measured[1].ids[:2])
