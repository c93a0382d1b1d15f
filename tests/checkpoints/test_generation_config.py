"""generation_config.json is read, or refused in one line that names the file."""

import json

import pytest

from hybridize.checkpoints.generation_config import read_generation_config
from hybridize.checkpoints.load import load_tokenizer
from hybridize.errors import InputError
from tiny import write_tokenizer


def test_generation_options_are_read(tmp_path):
    assert read_generation_config(tmp_path) is None
    options = {"eos_token_id": [2, 5], "bos_token_id": 1, "top_k": 7, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(options))
    read = read_generation_config(tmp_path)
    assert {name: getattr(read, name) for name in options} == options


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_a_negative_token_is_noted(tmp_path, capsys, name):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({name: -1}))
    assert getattr(read_generation_config(tmp_path), name) == -1
    assert capsys.readouterr().err == f"note: {path}: {name} is -1, which is not a token\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"eos_token_id": "5.24.0"}', "eos_token_id is '5.24.0'"),
        ('{"eos_token_id": [[2]]}', "eos_token_id is \\[\\[2\\]\\]"),
        ('{"pad_token_id": true}', "pad_token_id is True"),
        ('{"output_hidden_states": [[]]}', "output_hidden_states is \\[\\[\\]\\]"),
        ('{"temperature": "hot"}', "temperature is 'hot'"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is a JSON list; it must be a JSON object"),
        ('{"top_k": ', "not valid JSON"),
    ],
)
def test_damage_is_reported(tmp_path, text, words):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=f"{tmp_path}/generation_config.json: {words}") as caught:
        read_generation_config(tmp_path)
    assert str(caught.value).isprintable()


def test_an_unusable_tokenizer_is_refused_on_loading(tmp_path):
    write_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path)("ab").input_ids
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "long"}))
    with pytest.raises(InputError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)
