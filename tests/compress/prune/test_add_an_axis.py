"""A pruning axis that is written outside the package, as CONTRIBUTING.md describes it.

The axis removes tiles of four adjacent MLP channels, for kernels that need such widths.
"""

import subprocess
import sys
from textwrap import dedent

import pytest
import torch

from hybridize.__main__ import main
from hybridize.checkpoints.load import load_model
from hybridize.compress.prune.axes import AXES
from hybridize.compress.registry import Entry
from tiny import tokens, write_stock, write_tokenizer

FILE = '''
"""Tiles of adjacent MLP channels."""

from dataclasses import replace

import torch
from typing_extensions import override

from hybridize.compress.prune.axes.base import ActivationStats, Axis, Slices, rows_of
from hybridize.modeling.layers.sizes import MLPSizes

_TILE = 4


class MLPTiles(Axis[MLPSizes]):
    """A unit is a tile of four adjacent channels between the linear layers."""

    unit = "MLP tiles"
    block_kind = MLPSizes

    @override
    def count(self, sizes: MLPSizes) -> int:
        return sizes.intermediate_size // _TILE

    @override
    def resize(self, sizes: MLPSizes, count: int) -> MLPSizes:
        return replace(sizes, intermediate_size=count * _TILE)

    @override
    def score(self, sizes: MLPSizes, stats: ActivationStats) -> torch.Tensor:
        return stats.output.view(-1, _TILE).sum(-1)

    @override
    def slices(self, sizes: MLPSizes, kept: torch.Tensor) -> Slices:
        rows = rows_of(kept, _TILE)
        return {
            "gate_proj.weight": (0, rows),
            "up_proj.weight": (0, rows),
            "down_proj.weight": (1, rows),
        }
'''
LINE = ("mlp-tiles", Entry("mlp_tiles:MLPTiles", "tiles of four MLP channels"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the axis's file, from which Python imports."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "mlp_tiles.py").write_text(FILE)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_the_axis_appears_in_the_help_without_importing_torch(folder):
    name, entry = LINE
    program = f"""
        import sys
        from hybridize.compress.prune.axes import AXES
        from hybridize.compress.registry import Entry
        AXES.entries[{name!r}] = {entry!r}
        from hybridize.__main__ import main
        main(["prune", "--help"])
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mlp-tiles: tiles of four MLP channels" in " ".join(done.stdout.split())


@torch.no_grad()
def test_prune_along_the_axis(folder, tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    write_tokenizer(tmp_path / "in")
    (tmp_path / "text.txt").write_text("A few words to measure on, with Other Letters 0123. " * 60)
    command = ["prune", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--params", "90%"]
    command += ["--calibration", str(tmp_path / "text.txt"), "--calibration-tokens", "1024"]
    command += ["--candidates", "2", "--axes", "mlp-tiles", "--quiet"]
    assert main(command) == 2  # the axis is unknown
    monkeypatch.setitem(AXES.entries, *LINE)
    assert main(command) == 0

    before, after = (load_model(tmp_path / name) for name in ("in", "out"))
    old = before.model.blocks[1].mixer.up_proj.weight
    new = after.model.blocks[1].mixer.up_proj.weight
    assert 0 < len(new) < len(old)
    assert len(new) % 4 == 0
    # Every tile of the result is a tile of the model.
    tiles = old.view(-1, 4 * old.shape[1]).tolist()
    assert all(tile in tiles for tile in new.view(-1, 4 * old.shape[1]).tolist())
    assert after(tokens()).logits.isfinite().all()
