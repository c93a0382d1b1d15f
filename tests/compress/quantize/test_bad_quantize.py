"""Whatever is wrong with what `quantize` is given: one line, exit code 2, and nothing written."""

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
def refused(model, capsys):
    """Run `quantize` on the model, and return the one line that it ends with."""

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
def test_a_weight_that_is_not_finite(model, refused, name, value):
    change(model, name, lambda weight: weight.view(-1)[3:4].fill_(value))
    message = refused()
    assert name in message
    assert "NaN or infinity" in message
    assert "--allow-nonfinite" not in message  # which this command does not have


def test_text_that_never_reaches_a_block(model, refused):
    # No value of this block's attention, so its output projection meets nothing but zeros.
    change(model, "model.layers.1.self_attn.v_proj.weight", torch.Tensor.zero_)
    message = refused("--scheme", "fp8-tensor", "--calibration", model.parent / "text.txt")
    assert "--calibration: model.blocks.2.mixer.o_proj meets nothing but zeros" in message
    assert "--scheme fp8" in message


def test_text_that_overflows(model, refused):
    change(model, "model.layers.1.mlp.up_proj.weight", lambda weight: weight.fill_(3e38))
    message = refused("--scheme", "fp8-tensor", "--calibration", model.parent / "text.txt")
    assert "meets NaN or infinity on this text" in message


def test_what_is_quantized_already(model, refused):
    fp8 = model.parent / "fp8"
    assert main(["quantize", str(model), "-o", str(fp8), "--quiet"]) == 0
    message = refused(of=fp8)
    assert "the checkpoint is quantized; start from the unquantized one" in message


@pytest.mark.parametrize("command", ["convert", "distill", "prune"])
def test_the_other_stages_want_the_unquantized_one(model, command, capsys):
    fp8 = model.parent / "fp8"
    assert main(["quantize", str(model), "-o", str(fp8), "--quiet"]) == 0
    more = {"convert": [], "distill": ["--teacher", str(model)], "prune": ["--params", "50%"]}
    capsys.readouterr()
    assert main([command, str(fp8), "-o", str(model.parent / "out"), *more[command]]) == 2
    assert "start from the unquantized one, and quantize what comes of it" in capsys.readouterr()[1]


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
def test_what_cannot_be_kept(refused, keep, words):
    assert words in refused("--keep-bf16", keep)


def test_text_that_nobody_would_read(model, refused):
    assert "takes its scales from each input" in refused("--calibration", model.parent / "text.txt")


def test_a_model_too_narrow_for_blocks(refused):
    assert "32 columns are no multiple of 128" in refused("--scheme", "fp8-block")


def test_an_output_that_exists(model, capsys):
    output = model.parent / "out"
    output.mkdir()
    assert main(["quantize", str(model), "-o", str(output)]) == 2
    assert "--force replaces it" in capsys.readouterr()[1]
    assert not list(output.iterdir())
    assert main(["quantize", str(model), "-o", str(output), "--force", "--quiet"]) == 0
    assert (output / "hybridize.json").exists()


def test_the_table_says_why_each_block_stayed(model, capsys):
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
