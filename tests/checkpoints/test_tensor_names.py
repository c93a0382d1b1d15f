"""Tensors under other names than a format's: read if transformers reads them, else explained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.load import load_model
from hybridize.errors import InputError
from tiny import tokens, write_stock

Rename = Callable[[str], str]


def rename(directory: Path, rename: Rename) -> None:
    path = directory / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [("llama", "model"), ("bamba", "model"), ("mamba2", "backbone"), ("nemotron_h", "model")],
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_was_saved_without_its_head(tmp_path, architecture, prefix, tied):
    write_stock(tmp_path, architecture, tie_word_embeddings=tied)
    rename(tmp_path, lambda name: name.removeprefix(f"{prefix}."))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokens(2, 30)
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, stock(ids).logits)


@pytest.mark.parametrize(
    ("prefix", "tool"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("base_model.model.", "peft"),
        ("module._orig_mod.", "unwrap the model"),
    ],
)
def test_prefixes_of_training_tools_are_named(tmp_path, prefix, tool):
    write_stock(tmp_path, "llama")
    rename(tmp_path, lambda name: prefix + name)
    with pytest.raises(InputError, match=f"has the prefix .*{tool}"):
        load_model(tmp_path)


def test_wrappers_inside_of_the_model_are_named(tmp_path):
    write_stock(tmp_path, "llama")
    rename(tmp_path, lambda name: name.replace("mlp.", "_fsdp_wrapped_module.mlp."))
    with pytest.raises(InputError, match=r"mlp.* is missing; .*FSDP: unwrap the model"):
        load_model(tmp_path)


def test_a_missing_head_is_explained(tmp_path):
    write_stock(tmp_path, "llama", tie_word_embeddings=False)
    rename(tmp_path, lambda name: name.replace("lm_head", "score"))
    with pytest.raises(InputError, match=r"'lm_head.weight' is missing; .*tie_word_embeddings"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_config.json", "merge_and_unload"),
        ("params.json", "Hugging Face version"),
        ("model-q4_k_m.gguf", "llama.cpp"),
        ("model_index.json", "diffusers"),
        ("step-100/config.json", "step-100/config.json says .* parent of a checkpoint"),
        ("model.safetensors", "without their config.json"),
        ("notes.txt", "is this a Hugging Face checkpoint"),
    ],
)
def test_a_directory_without_config_is_described(tmp_path, name, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(InputError, match=f"config.json: missing; .*{said}"):
        CheckpointReader(tmp_path)


def test_a_byte_order_mark_before_the_config(tmp_path):
    write_stock(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert CheckpointReader(tmp_path).config["model_type"] == "llama"
