"""The weights that are read are those that transformers reads."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybridize.checkpoints import CheckpointReader
from hybridize.errors import InputError
from tiny import write_stock

NAME = "lm_head.weight"
SETS = ("single", "sharded", "other", "other index")


def write_set(directory: Path, kind: str, tensors: dict[str, torch.Tensor], factor: float) -> None:
    """Write one of the sets of weights that a directory may have, with its own values."""
    scaled = {name: tensor * factor for name, tensor in tensors.items()}
    if kind == "single":
        save_file(scaled, directory / "model.safetensors", {"format": "pt"})
    elif kind == "other":
        save_file(scaled, directory / "other.safetensors", {"format": "pt"})
    else:
        stem = "model" if kind == "sharded" else "other"
        names = sorted(scaled)
        parts = {f"{stem}-1.safetensors": names[::2], f"{stem}-2.safetensors": names[1::2]}
        for file, part in parts.items():
            save_file({name: scaled[name] for name in part}, directory / file, {"format": "pt"})
        weight_map = {name: file for file, part in parts.items() for name in part}
        index = directory / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stock")
    write_stock(directory, "llama")
    return directory


@settings(max_examples=12, deadline=None)
@given(sets=st.sets(st.sampled_from(SETS), min_size=1), named=st.sampled_from([None, *SETS[2:]]))
def test_the_weights_are_those_of_transformers(
    plain: Path, tmp_path_factory: pytest.TempPathFactory, sets: set[str], named: str | None
) -> None:
    directory = tmp_path_factory.mktemp("model")
    config = json.loads((plain / "config.json").read_text())
    if named is not None:
        file = "other.safetensors" + (".index.json" if named == "other index" else "")
        config["transformers_weights"] = file
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(plain / "model.safetensors")
    for factor, kind in enumerate(sorted(sets), start=2):
        write_set(directory, kind, tensors, float(factor))
    try:
        stock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    except (OSError, ValueError):  # of the index that is missing
        with pytest.raises(InputError, match=r"missing|no model\.safetensors"):
            CheckpointReader(directory)
        return
    with CheckpointReader(directory) as reader:
        torch.testing.assert_close(reader.get(NAME), stock.lm_head.weight.data, rtol=0, atol=0)


def test_unused_weights_are_named(plain: Path, tmp_path: Path, capsys) -> None:
    tensors = load_file(plain / "model.safetensors")
    (tmp_path / "config.json").write_text((plain / "config.json").read_text())
    for kind in ("single", "sharded"):
        write_set(tmp_path, kind, tensors, 1.0)
    for _ in range(2):
        with CheckpointReader(tmp_path) as reader:
            assert reader.files == [tmp_path / "model.safetensors"]
    assert capsys.readouterr().err == (
        f"note: {tmp_path}: the weights are in model.safetensors; unused beside it: "
        "model-1.safetensors and 1 more\n"
    )


def test_a_left_over_index_does_no_harm(plain: Path, tmp_path: Path) -> None:
    write_set(tmp_path, "sharded", load_file(plain / "model.safetensors"), 1.0)
    for shard in tmp_path.glob("model-*"):
        shard.unlink()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    with CheckpointReader(tmp_path) as reader:
        assert reader.files == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("named", [3, "../model.safetensors", "model.bin", "gone.safetensors"])
def test_wrong_names_are_refused(plain: Path, tmp_path: Path, named: object) -> None:
    config = json.loads((plain / "config.json").read_text()) | {"transformers_weights": named}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"config\.json: transformers_weights "):
        CheckpointReader(tmp_path)


def test_adapters_are_refused(plain: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"adapter_config\.json: is the configuration of an adapter"
    ):
        CheckpointReader(tmp_path)
