"""`hybridize generate` beside transformers: settings of the model, and models that overflow."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridize.cli import cli
from hybridize.errors import HybridizeError
from hybridize.generation import _UNSUPPORTED, generate
from tiny import write_stock, write_tokenizer

PROMPT = "abc"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    write_stock(directory, "llama")
    write_tokenizer(directory)
    return directory


def settings(model: Path, **values: object) -> None:
    (model / "generation_config.json").write_text(json.dumps(values))


def stock_text(model: Path, tokens: int = 8) -> str:
    """Return what transformers generates greedily, without the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    out = stock.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


OTHER_VALUES = {
    "num_beams": 4, "num_beam_groups": 2, "num_return_sequences": 2, "cache_config": {"nbits": 4},
    "cache_implementation": "quantized", "prompt_lookup_num_tokens": 3, "assistant_early_exit": 2,
    "penalty_alpha": 0.6, "dola_layers": "low", "constraints": [[1]], "force_words_ids": [[1]],
    "return_dict_in_generate": True, "use_mtp": True,
}  # fmt: skip


@pytest.mark.parametrize("name", list(_UNSUPPORTED))
def test_settings_for_several_continuations_are_ignored_with_a_note(model, capsys, name):
    settings(model)
    expected = stock_text(model)
    settings(model, do_sample=True, **{name: OTHER_VALUES[name]})
    capsys.readouterr()
    assert "".join(generate(model, PROMPT, max_new_tokens=8)) == expected
    note = f"note: {model}: generate ignores {name} of generation_config.json\n"
    assert note in capsys.readouterr().err


def test_stop_strings_end_the_text(model):
    settings(model)
    text = stock_text(model)
    stop = text[3]
    settings(model, stop_strings=[stop])
    assert "".join(generate(model, PROMPT, max_new_tokens=8)) == text[: text.index(stop) + 1]


def overflow(model: Path) -> None:
    """Make values that are finite in float32 and infinite in float16."""
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 1e5
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_overflows_is_refused(model, temperature):
    overflow(model)
    assert "".join(generate(model, PROMPT, max_new_tokens=4))
    with pytest.raises(HybridizeError, match="computes NaN or infinity; check its weights"):
        list(generate(model, PROMPT, max_new_tokens=4, dtype="float16", temperature=temperature))


def test_the_prompt_is_not_printed_before_an_error(model, capsys):
    overflow(model)
    options = ["generate", str(model), "-p", PROMPT, "--dtype", "float16"]
    with pytest.raises(HybridizeError):
        cli.main(options, standalone_mode=False)
    assert capsys.readouterr().out == ""
