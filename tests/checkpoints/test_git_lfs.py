"""Pointers of git-lfs are named, and never carried to a result."""

from pathlib import Path

import pytest

from hybridize import convert
from hybridize.checkpoints.load import load_model, load_tokenizer
from hybridize.errors import InputError
from tiny import write_stock, write_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    write_stock(directory, "llama", shard="20KB")
    write_tokenizer(directory)
    (directory / "LICENSE").write_text("text")
    return directory


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "LICENSE", "index", "shard"]
)
def test_pointers_are_refused_before_anything_is_written(model, tmp_path, name):
    names = {"index": "model.safetensors.index.json", "shard": "model-00002-of-*.safetensors"}
    (path,) = model.glob(names.get(name, name))
    path.write_text(POINTER)
    output = tmp_path / "output"
    with pytest.raises(InputError, match=f"{path}: is a git-lfs pointer.*git lfs pull"):
        convert(model, output, attention=1)
    assert not output.exists()


def test_pointers_are_refused_by_what_loads_the_model_and_the_tokenizer(model):
    load_model(model)
    path = model / "tokenizer.json"
    path.write_text(POINTER)
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match=f"{path}: is a git-lfs pointer"):
            load(model)


def test_a_lone_tokenizer_model_names_the_package_that_reads_it(model, monkeypatch):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(b"sentencepiece")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs the package sentencepiece: pip install"):
        load_tokenizer(model)
