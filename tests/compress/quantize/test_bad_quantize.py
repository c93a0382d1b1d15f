"""Bad input to `quantize`: one line of error, exit code 2, and nothing is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridize.__main__ import main
from tiny import write_stock, write_tokenizer


@pytest.fixture
def model(tmp_path):
    write_stock(tmp_path / "model", "llama")
    write_tokenizer(tmp_path / "model")
    (tmp_path / "text.txt").write_text("abc def " * 400)
    return tmp_path / "model"


@pytest.fixture
def error_of(model, capsys):
    """Return a function that runs `quantize` with bad input and returns its error message."""

    def call(*arguments, of=model):
        output = model.parent / "out"
        capsys.readouterr()
        assert main(["quantize", str(of), "-o", str(output), *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert out == ""
        assert not list(model.parent.glob("out*"))
        return lines[0]

    return call


def change(model, name, edit):
    path = model / "model.safetensors"
    weights = load_file(path)
    edit(weights[name])
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_nonfinite_weight(model, error_of, name, value):
    change(model, name, lambda weight: weight.view(-1)[3:4].fill_(value))
    message = error_of()
    assert name in message
    assert "NaN or infinity" in message
    assert "allow-nonfinite" not in message  # this command has no such option


def test_layer_whose_inputs_are_all_zero(model, error_of):
    # All values of this attention are zero, and with them the inputs of its output projection.
    change(model, "model.layers.1.self_attn.v_proj.weight", torch.Tensor.zero_)
    message = error_of("--scheme", "fp8-tensor", "--calibration", model.parent / "text.txt")
    assert "--calibration: the inputs of model.blocks.2.mixer.o_proj are all zero" in message
    assert "--scheme fp8" in message


def test_layer_whose_inputs_overflow(model, error_of):
    change(model, "model.layers.1.mlp.up_proj.weight", lambda weight: weight.fill_(3e38))
    message = error_of("--scheme", "fp8-tensor", "--calibration", model.parent / "text.txt")
    assert "are NaN or infinite on this text" in message


def test_checkpoint_that_is_already_quantized(model, error_of):
    fp8 = model.parent / "fp8"
    assert main(["quantize", str(model), "-o", str(fp8), "--quiet"]) == 0
    message = error_of(of=fp8)
    assert "the checkpoint is quantized; use the unquantized checkpoint" in message


@pytest.mark.parametrize("command", ["convert", "distill", "prune"])
def test_other_commands_need_the_unquantized_checkpoint(model, command, capsys):
    fp8 = model.parent / "fp8"
    assert main(["quantize", str(model), "-o", str(fp8), "--quiet"]) == 0
    more = {"convert": [], "distill": ["--teacher", str(model)], "prune": ["--params", "50%"]}
    capsys.readouterr()
    assert main([command, str(fp8), "-o", str(model.parent / "out"), *more[command]]) == 2
    assert "use the unquantized checkpoint, and quantize the result" in capsys.readouterr()[1]


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("many", "give a number"),
        ("-1", "give a number"),
        ("25%", "give a number"),
        ("auto:", "give a number"),
        ("auto:x%", "give a number"),
        ("4", "leaves none of the 8 blocks"),
        ("auto:100%", "leaves none of the 8 blocks"),
    ],
)
def test_bad_values_of_keep_bf16(error_of, keep, words):
    assert words in error_of("--keep-bf16", keep)


def test_calibration_text_that_the_scheme_does_not_use(model, error_of):
    assert "computes its scales from each input" in error_of(
        "--calibration", model.parent / "text.txt"
    )


def test_model_that_is_too_narrow_for_the_scheme(error_of):
    assert "its 32 columns are not a multiple of 128" in error_of("--scheme", "fp8-block")


def test_output_that_exists(model, capsys):
    output = model.parent / "out"
    output.mkdir()
    assert main(["quantize", str(model), "-o", str(output)]) == 2
    assert "--force replaces it" in capsys.readouterr()[1]
    assert not list(output.iterdir())
    assert main(["quantize", str(model), "-o", str(output), "--force", "--quiet"]) == 0
    assert (output / "hybridize.json").exists()


def test_the_table_gives_the_reason_for_each_kept_block(model, capsys):
    output = model.parent / "out"
    assert main(["quantize", str(model), "-o", str(output), "--keep-bf16", "2", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.count("among the first 2") == out.count("among the last 2") == 2
    assert "was not written" in err
    assert not output.exists()
    assert main(["quantize", str(model), "-o", str(output), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr()[0])
    assert [block["block"] for block in found["kept"]] == [0, 7]
    assert found["bytes_after"] < found["bytes_before"]
    assert found["files"] == 0
