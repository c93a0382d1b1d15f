"""A step that is computed in several parts equals the step of one large batch."""

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file

from hybridize.compress.distill.stages.hidden import Hidden
from hybridize.errors import HybridizeError, InputError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Read-only: all tests of the module share it."""
    return write_pair(tmp_path_factory.mktemp("pair"))


STAGES = {"stages": ("align", "hidden", "kl"), "stage_tokens": {"align": 448, "kl": 448}}


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    short_run(pair, output, batch_size=7, train="all", label_weight=0.2, **STAGES)
    return output


@pytest.mark.parametrize("batch_size", [1, 3])
def test_accumulated_gradients_train_like_one_batch(pair, whole, tmp_path, batch_size):
    """Seven sequences in parts of three: the last part is smaller."""
    options = {"batch_size": batch_size, "global_batch_size": 7}
    result = short_run(
        pair, tmp_path, train="all", label_weight=0.2, force=True, **options, **STAGES
    )
    assert [stage.tokens for stage in result.stages] == [448, 448, 448]
    assert len(losses(tmp_path)) == len(losses(whole))
    for ours, theirs in zip(losses(tmp_path), losses(whole), strict=True):
        assert ours.pop("stage") == theirs.pop("stage")
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, whole))
    for name, value in theirs.items():
        # Adam turns rounding errors of gradients that are nearly zero into parts of a step (3e-4).
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=2e-5)


def test_a_global_batch_is_not_smaller_than_a_batch(pair, tmp_path):
    with pytest.raises(InputError, match="`global_batch_size=3`: give at least `batch_size=4`"):
        short_run(pair, tmp_path / "out", global_batch_size=3)


def test_a_stage_with_its_own_backward_pass_is_refused(pair, tmp_path, monkeypatch):
    """It would ignore the sizes of the parts."""

    def training_step(self, ids, seq_idx, indices):
        loss = self._loss(ids, seq_idx)
        loss.backward()
        return float(loss.detach())

    monkeypatch.setattr(Hidden, "training_step", training_step)
    short_run(pair, tmp_path / "out", stages=("hidden",))
    with pytest.raises(HybridizeError, match=r"does not call `Stage\.backward`"):
        short_run(pair, tmp_path / "parts", stages=("hidden",), global_batch_size=8)
