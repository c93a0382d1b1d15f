"""A quantization scheme that is written outside the package, as CONTRIBUTING.md describes it.

The scheme combines one scale per row of a weight with one static scale per layer's input.
"""

import json
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file

import hybridize
from hybridize.__main__ import main
from hybridize.checkpoints.load import load_model
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.compress.registry import Entry
from tiny import tokens, write_stock, write_tokenizer

FILE = '''
"""One scale per row of a weight, and one static scale per layer's input."""

from hybridize.checkpoints.quantization import Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8RowStatic(Scheme):
    """Weights have a scale per output channel. Activations have one static scale."""

    quantization = Quantization(weights="row", activations="tensor", static=True)
    weight_args = {"strategy": "channel"}
    input_args = {"strategy": "tensor", "dynamic": False}
'''
LINE = ("fp8-row-static", Entry("fp8_row_static:FP8RowStatic", "per row of a weight, static"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the scheme's file, from which Python imports."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fp8_row_static.py").write_text(FILE)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_the_scheme_appears_in_the_help_without_importing_torch(folder):
    name, entry = LINE
    program = f"""
        import sys
        from hybridize.compress.quantize.schemes import SCHEMES
        from hybridize.compress.registry import Entry
        SCHEMES.entries[{name!r}] = {entry!r}
        from hybridize.__main__ import main
        main(["quantize", "--help"])
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    help_text = " ".join(done.stdout.split())
    assert "fp8|fp8-tensor|fp8-block|fp8-row-static" in help_text
    assert "fp8-row-static: per row of a weight, static" in help_text


@torch.no_grad()
def test_quantize_with_the_scheme(folder, tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    write_tokenizer(tmp_path / "in")
    (tmp_path / "text.txt").write_text("abc def " * 400)
    command = ["quantize", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    command += ["--calibration", str(tmp_path / "text.txt"), "--calibration-tokens", "512"]
    command += ["--scheme", "fp8-row-static", "--keep-bf16", "1", "--quiet"]
    assert main(command) == 2  # the scheme is unknown
    monkeypatch.setitem(SCHEMES.entries, *LINE)
    assert main(command) == 0
    assert hybridize.inspect(tmp_path / "out").quantization == "fp8-row-static"

    weights = load_file(tmp_path / "out" / "model.safetensors")
    stem = "model.layers.1.mlp.up_proj."
    assert weights[stem + "weight"].dtype == torch.float8_e4m3fn
    assert weights[stem + "weight_scale"].shape == (len(weights[stem + "weight"]), 1)
    assert weights[stem + "input_scale"].shape == (1,)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["strategy"] == "tensor"
    want, got = (load_model(tmp_path / name)(tokens()).logits for name in ("in", "out"))
    assert 0 < (got - want).abs().mean() < 0.2 * want.std()
