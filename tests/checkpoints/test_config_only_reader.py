"""config.json alone is enough to plan a conversion; writing one without weights is refused."""

import json
import shutil

import pytest

from hybridize.__main__ import main
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.config_only_reader import ConfigOnlyReader, open_for_planning
from hybridize.errors import InputError
from tiny import TRANSFORMERS, write_stock


@pytest.fixture(params=TRANSFORMERS)
def checkpoint(request, tmp_path):
    write_stock(tmp_path / "model", request.param)
    (tmp_path / "shape").mkdir()
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "shape")
    return tmp_path


def test_tensors_equal_those_of_the_checkpoint(checkpoint):
    with (
        CheckpointReader(checkpoint / "model") as real,
        ConfigOnlyReader(checkpoint / "shape") as planned,
    ):
        assert set(planned.names) == set(real.names)
        for name in real.names:
            assert planned.shape(name) == real.shape(name)
            assert planned.dtype(name) == real.dtype(name)
            assert planned.nbytes(name) == real.nbytes(name)
        with pytest.raises(InputError, match="has no weights"):
            planned.get(planned.names[0])


def test_the_plan_is_the_same(checkpoint, capsys):
    plans = []
    for name in ("model", "shape"):
        arguments = ["convert", str(checkpoint / name), "-o", str(checkpoint / "out")]
        assert main([*arguments, "--keep", "2", "--dry-run", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        plans.append({key: value for key, value in plan.items() if key != "source"})
    assert plans[0] == plans[1]
    assert plans[0]["parameters_after"] > 0
    assert not (checkpoint / "out").exists()


def test_a_conversion_without_weights_is_refused(tmp_path, capsys):
    write_stock(tmp_path / "model", "llama")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert (
        main(["convert", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--keep", "2"]) == 2
    )
    assert "no model.safetensors" in capsys.readouterr().err


def test_weight_files_are_read_if_there_are_any(tmp_path):
    write_stock(tmp_path / "model", "llama")
    with open_for_planning(tmp_path / "model") as reader:
        assert not isinstance(reader, ConfigOnlyReader)
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        open_for_planning(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["int4", "__import__", ["float32"], 3])
def test_an_unknown_dtype_is_refused(tmp_path, dtype):
    write_stock(tmp_path / "model", "llama")
    path = tmp_path / "model" / "config.json"
    (tmp_path / "model" / "model.safetensors").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": dtype}))
    with pytest.raises(InputError, match="dtype"):
        open_for_planning(tmp_path / "model")
