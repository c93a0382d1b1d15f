"""A model that runs block by block, and a model that is written from memory."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hybridize
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.save import save_model
from hybridize.checkpoints.tensors import CheckpointTensors
from tiny import tokens, write_stock, write_tokenizer


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "granitemoehybrid", "nemotron_h"])
def test_blockwise_model_equals_the_whole_model(tmp_path, architecture):
    write_stock(tmp_path / "in", architecture)
    ids, seq_idx = tokens(2, 30), (torch.arange(30) > 11).long().expand(2, -1)
    want = load_model(tmp_path / "in").model(ids, seq_idx=seq_idx, use_cache=False)
    with CheckpointReader(tmp_path / "in") as reader:
        format_, config = read_config(reader)
        model = BlockwiseModel(CheckpointTensors(reader, format_, config), config)
        x = model.embed(ids)
        for index in range(len(config.blocks)):
            x = model.block(index)(x, model.context(x, seq_idx))
        norm = load_model(tmp_path / "in").model.norm
    assert torch.equal(norm(x), want.last_hidden_state)


@pytest.mark.parametrize("format_", ["granitemoehybrid", "hybridize"])
def test_save_model_keeps_format_dtypes_and_files(tmp_path, format_):
    write_stock(tmp_path / "in", "llama", dtype="bfloat16")
    write_tokenizer(tmp_path / "in")
    hybridize.convert(tmp_path / "in", tmp_path / "like", keep=(1,), format=format_)
    model = load_model(tmp_path / "like", dtype=torch.float32)
    with torch.no_grad():
        model.model.blocks[0].mixer.D.fill_(0.5)
    record = {"command": "test", "metrics": {}}
    parameters = dict(model.named_parameters())
    save_model(
        parameters,
        tmp_path / "out",
        like=tmp_path / "like",
        record=record,
        extra_files={"a.b": b"1"},
    )
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("like", "out"))
    assert before.keys() == after.keys()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(changed) == 1
    assert changed[0].endswith("D")
    assert {t.dtype for t in after.values()} == {t.dtype for t in before.values()}
    assert (tmp_path / "out" / "a.b").read_bytes() == b"1"
    assert hybridize.verify(tmp_path / "out").problems == ()
    if format_ != "hybridize":
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        ids = tokens(1, 20)
        with torch.no_grad():
            got, want = again(ids).logits, load_model(tmp_path / "out", dtype=torch.float32)(ids)
        torch.testing.assert_close(got, want.logits, rtol=1e-5, atol=1e-5)
