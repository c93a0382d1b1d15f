"""RoPE in a config.json where configurations disagree with the code that transformers runs."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridize import convert
from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.errors import InputError
from tiny import TRANSFORMERS, tokens, write_stock

WHOLE_HEADS = [*TRANSFORMERS, "granitemoehybrid"]


def rewrite(directory, **changes) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | {"rope_parameters": None} | changes
    path.write_text(json.dumps(raw))


@torch.no_grad()
@pytest.mark.parametrize("architecture", WHOLE_HEADS)
@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.25}},
        {"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}},
    ],
    ids=["beside", "inside", "older spelling"],
)
def test_plain_rope_rotates_whole_heads(tmp_path, monkeypatch, architecture, changes):
    """Transformers' code of these architectures ignores the factor; other programs do not."""
    source, output = tmp_path / "source", tmp_path / "output"
    write_stock(source, architecture)
    rewrite(source, **changes)
    notes: list[str] = []
    monkeypatch.setattr(console, "note", notes.append)
    ids = tokens(2, 40)
    want = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(load_model(source)(ids).logits, want, rtol=1e-5, atol=1e-5)
    assert [text for text in notes if "partial_rotary_factor is 0." in text]
    convert(source, output, attention="100%")
    again = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    torch.testing.assert_close(again(ids).logits, want, rtol=1e-5, atol=1e-5)
    assert "partial_rotary_factor" not in json.loads((output / "config.json").read_text())


@torch.no_grad()
@pytest.mark.parametrize("architecture", WHOLE_HEADS)
def test_scaled_rope_of_a_part_of_a_head_is_refused(tmp_path, architecture):
    write_stock(tmp_path, architecture)
    scaling = {"type": "linear", "factor": 2.0}
    rewrite(tmp_path, rope_scaling=scaling, partial_rotary_factor=0.5)
    with pytest.raises(RuntimeError, match="must match the size"):
        AutoModelForCausalLM.from_pretrained(tmp_path)(tokens(1, 9))
    with pytest.raises(InputError, match=r"partial_rotary_factor is 0.5 and rope_type is 'linear'"):
        load_model(tmp_path)
    rewrite(tmp_path, rope_scaling=scaling, partial_rotary_factor=1.0)
    load_model(tmp_path)


@pytest.mark.parametrize("head_dim", [1, 3])
def test_heads_of_an_odd_width_are_refused(tmp_path, head_dim):
    write_stock(tmp_path, "mistral", head_dim=head_dim)
    with pytest.raises(InputError, match=f"config.json: head_dim is {head_dim}; .* must be even"):
        load_model(tmp_path)
