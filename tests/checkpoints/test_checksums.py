"""Saved tensors and values are read back unchanged, or the damage is detected."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.errors import HybridizeError

TENSORS = {
    "a": torch.arange(6.0).view(2, 3).t(),
    "step": torch.tensor(3.0),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 2, dtype=torch.int32),
}
ABOUT = {"text": "größe", "numbers": [1, 2.5], "none": None}


def test_tensors_and_values_are_read_back(tmp_path):
    path = tmp_path / "state.safetensors"
    save_checked(path, {"old": torch.ones(1)}, {})
    save_checked(path, TENSORS, ABOUT)
    tensors, about = load_checked(path)
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, want in TENSORS.items():
        assert tensors[name].dtype == want.dtype
        assert torch.equal(tensors[name], want)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@given(data=st.data())
def test_every_changed_byte_is_detected(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("checked") / "x.safetensors"
    save_checked(path, TENSORS, ABOUT)
    content = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        tensors, about = load_checked(path)
    except ValueError:
        return
    assert about == ABOUT  # spaces between header and data have no meaning
    assert all(torch.equal(tensors[name], want) for name, want in TENSORS.items())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(HybridizeError, match="gone/x: cannot be written"):
        save_checked(tmp_path / "gone" / "x", TENSORS, ABOUT)
