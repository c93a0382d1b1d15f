"""Tensors beside the weights: left out with a note if no model needs them, refused otherwise."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybridize import convert, inspect
from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.errors import InputError
from tiny import ARCHITECTURES, tokens, write_stock


def add(directory, extra: dict[str, torch.Tensor]) -> None:
    path = directory / "model.safetensors"
    save_file(load_file(path) | extra, path, {"format": "pt"})


LEFT_OUT = {
    "RoPE tables": {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 8, 4),
    },
    "position ids": {"model.position_ids": torch.arange(8)},
    "attention masks": {
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "model.layers.0.attention.masked_bias": torch.tensor(-1e9),
    },
    "scales of the KV cache": {
        "model.layers.0.self_attn.k_scale": torch.tensor([0.02]),
        "model.layers.0.self_attn.v_scale": torch.tensor(0.02),
        "model.layers.0.self_attn.attn.k_scale": torch.tensor(0.02),
        "model.layers.0.self_attn.kv_scale": torch.tensor(0.02),
        "model.layers.0.self_attn.k_proj.k_scale": torch.tensor(0.02),
        "model.layers.0.self_attn.k_proj.output_scale": torch.tensor(0.02),
    },
    "training states": {
        "model.layers.0.mlp.down_proj._extra_state": torch.zeros(9, dtype=torch.uint8)
    },
    "heads that score texts": {"v_head.summary.weight": torch.ones(1, 32)},
    "layers that predict further tokens": {"mtp.layers.0.norm.weight": torch.ones(32)},
}


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_that_no_model_needs_are_left_out(tmp_path, monkeypatch, architecture):
    stock = write_stock(tmp_path, architecture)
    add(tmp_path, {name: t for tensors in LEFT_OUT.values() for name, t in tensors.items()})
    notes: list[str] = []
    monkeypatch.setattr(console, "note", notes.append)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens(1, 20)
    want = stock(ids).logits
    assert torch.equal(again(ids).logits, want)  # so they have no influence
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, want, rtol=1e-5, atol=1e-5)
    for kind, tensors in LEFT_OUT.items():
        (note,) = {text for text in notes if kind in text}
        assert note.startswith(f"{tmp_path}: left out, without influence on the result: {kind} (")
        assert any(name in note for name in tensors)
    inspect(tmp_path)


def test_a_conversion_leaves_them_out(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    write_stock(source, "llama")
    add(source, LEFT_OUT["scales of the KV cache"])
    convert(source, output, attention="50%")
    assert not [name for name in load_file(output / "model.safetensors") if "scale" in name]


REFUSED = {
    "model.layers.0.self_attn.q_proj.lora_A.weight": "adapter",
    "base_model.model.model.layers.0.self_attn.q_proj.weight": "adapter",
    "model.layers.0.self_attn.q_proj.base_layer.weight": "adapter",
    "model.layers.0.self_attn.q_proj.weight_scale": "quantized",
    "model.layers.0.self_attn.q_proj.weight_scale_inv": "quantized",
    "model.layers.0.self_attn.q_proj.input_scale": "quantized",
    "model.layers.0.self_attn.q_proj.qweight": "quantized",
    "model.layers.0.self_attn.q_proj.scales": "quantized",
    "model.layers.0.self_attn.q_proj.weight.absmax": "quantized",
    "model.layers.0.self_attn.q_proj.SCB": "quantized",
    "model.layers.0.self_attn.q_proj.weight_packed": "quantized",
    "model.layers.0.self_attn.sinks": "is not part of a",
    "model.layers.0.self_attn.g_proj.weight": "is not part of a",
    "model.layers.99.self_attn.q_proj.weight": "is not part of a",
    "score.weight": "is not part of a",
    "model.layers.0.attention.bias": "is not part of a",  # one dimension: not a mask
}


@pytest.mark.parametrize("architecture", ["llama", "nemotron_h", "granitemoehybrid"])
def test_tensors_that_may_change_the_model_are_refused(tmp_path, architecture):
    write_stock(tmp_path, architecture)
    for name, reason in REFUSED.items():
        add(tmp_path, {name: torch.ones(4)})
        with pytest.raises(InputError, match=reason) as caught:
            load_model(tmp_path)
        assert repr(name) in str(caught.value)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors[name]
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
