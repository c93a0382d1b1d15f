"""The greedy selection, compared with swaps in whole models, one by one."""

import json
import sys

import pytest
import torch

import hybridize
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.conversion.calibration import new_mixer
from hybridize.conversion.first_values import first_values
from hybridize.conversion.plan import MambaChoice, mamba_sizes
from hybridize.conversion.selection import selection_curve
from hybridize.data.packing import PackedDataset
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


@torch.no_grad()
def test_every_point_is_the_best_of_all_single_swaps(tmp_path, teacher):
    mixers = new_mixers(tmp_path / "in")
    dataset = PackedDataset(
        tokens(130, 40).int(), torch.zeros(130, 40, dtype=torch.int32)
    )  # 2 batches
    before = [block.mixer for block in teacher.model.blocks]
    curve = selection_curve(teacher, mixers, dataset)
    assert [block.mixer for block in teacher.model.blocks] == before
    ids = dataset.ids.long()
    want = teacher(ids, use_cache=False).logits.double().log_softmax(-1)
    indices = sorted(mixers)

    def divergence(kept):
        for i, index in enumerate(indices):
            if i not in kept:
                teacher.model.blocks[index].mixer = mixers[index]
        got = teacher(ids, use_cache=False).logits.double().log_softmax(-1)
        for index in indices:
            teacher.model.blocks[index].mixer = before[index]
        return float((want.exp() * (want - got)).sum(-1).mean())

    assert [len(point.kept) for point in curve.points] == [4, 3, 2, 1, 0]
    for previous, point in zip(curve.points, curve.points[1:], strict=False):
        fewer = [tuple(k for k in previous.kept if k != swapped) for swapped in previous.kept]
        choices = {kept: divergence(kept) for kept in fewer}
        assert point.kept == min(choices, key=choices.__getitem__)
        assert point.kl == pytest.approx(choices[point.kept], rel=1e-4)


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


def test_a_missing_matplotlib_is_reported_before_anything_is_measured(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(
        "hybridize.data.calibration.load_calibration", lambda *_, **__: pytest.fail("too late")
    )
    with pytest.raises(HybridizeError, match=r'pip install "hybridize\[train\]"'):
        hybridize.convert(tmp_path / "in", tmp_path / "out", select="sensitivity")
