"""Add a kind of layer from outside the package with one file and one line, as in CONTRIBUTING."""

import sys

import pytest
import torch

from hybridize import inspect, load_model
from hybridize.checkpoints.formats import FORMATS, HYBRID_FORMATS, CannotStoreError
from hybridize.modeling.layers.kinds import LAYER_KINDS, LayerKind
from hybridize.modeling.layers.sizes import AttentionSizes, MLPSizes
from hybrids import build
from tiny import tokens

FILE = '''
"""A mixer that scales every channel of the mean over all earlier tokens."""

from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import override

from hybridize.modeling.layers.sizes import BlockSizes


@dataclass(frozen=True)
class RunningMeanSizes(BlockSizes):
    """Sizes of a running mean."""

    letter = "R"

    channels: int

    @property
    @override
    def layer_type(self):
        return "moe"  # no cache

    @override
    def shapes(self, hidden):
        return {"scale": (self.channels,)}

    @override
    def describe(self):
        return f"{self.channels} channels"


class RunningMean(nn.Module):
    """The mixer."""

    def __init__(self, config, sizes, layer_idx):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(sizes.channels))

    def forward(self, x, context):
        counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
        return self.scale * x.cumsum(1) / counts[:, None]
'''


@pytest.fixture
def running_mean(tmp_path, monkeypatch):
    """Write the file, add the line, and return the module."""
    (tmp_path / "running_mean.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        LAYER_KINDS,
        "R",
        LayerKind(
            "running_mean", "mean", "running_mean:RunningMeanSizes", "running_mean:RunningMean"
        ),
    )
    yield LAYER_KINDS["R"]
    sys.modules.pop("running_mean", None)


def build_with(kind):
    blocks = [AttentionSizes(4, 2, 8), kind.sizes_class()(32), MLPSizes(48)]
    return build(blocks, torch.float32)


def test_the_model_computes_and_trains_with_it(running_mean):
    model = build_with(running_mean)
    assert model.config.layout == "*R-"
    ids = tokens()
    output = model(ids, labels=ids)
    output.loss.backward()
    mixer = model.model.blocks[1].mixer
    assert mixer.scale.grad.abs().sum() > 0
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    means = torch.stack([x[:, : length + 1].mean(1) for length in range(5)], 1)
    expected = mixer.scale.detach().double() * means
    torch.testing.assert_close(mixer.double()(x, None), expected)


def test_hybridizes_own_format_stores_it_and_inspect_describes_it(running_mean, tmp_path):
    model = build_with(running_mean)
    model.save_pretrained(tmp_path / "out")
    opened = load_model(tmp_path / "out")
    assert torch.equal(opened(tokens()).logits, model(tokens()).logits)
    found = inspect(tmp_path / "out")
    assert found.layout == "*R-"
    (described,) = [kind for kind in found.kinds if kind.kind == "mean"]
    assert (described.count, described.parameters, described.sizes) == (1, 32, ("32 channels",))


def test_formats_that_cannot_store_it_refuse_it(running_mean):
    spec = build_with(running_mean).config.spec
    for name in set(HYBRID_FORMATS) - {"hybridize"}:
        with pytest.raises(CannotStoreError):
            FORMATS[name].fit(spec)
