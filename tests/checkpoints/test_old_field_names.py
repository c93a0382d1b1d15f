"""Checkpoints whose config.json has the field names of earlier versions can still be opened."""

import json

import torch

from hybridize.checkpoints.load import load_model
from hybrids import MIXED, build
from tiny import tokens

OLD_NAMES = {
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "n_groups": "groups",
    "conv_kernel": "conv_width",
    "intermediate_size": "width",
}


def with_old_names(fields):
    return {OLD_NAMES.get(name, name): value for name, value in fields.items()}


@torch.no_grad()
def test_old_field_names_give_the_same_model_and_logits(tmp_path):
    model = build(MIXED, torch.float32)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for kind in ("attention", "mamba", "mlp"):
        config[kind] = with_old_names(config[kind])
    overrides = config["overrides"]
    config["overrides"] = {index: with_old_names(fields) for index, fields in overrides.items()}
    text = json.dumps(config)
    assert all(f'"{old}"' in text for old in OLD_NAMES.values())
    assert not any(f'"{new}"' in text for new in OLD_NAMES)
    path.write_text(text, "utf-8")
    again = load_model(tmp_path)
    assert again.config.blocks == model.config.blocks
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
