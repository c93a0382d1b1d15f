"""NaN and infinity are detected at every position and in every dtype."""

import math

import pytest
import torch

from disk import FLOATS, write_checkpoint
from hybridize.checkpoints import (
    CheckpointReader,
)
from hybridize.checkpoints.finite import is_finite
from hybridize.errors import InputError


def special_values(dtype: torch.dtype) -> dict[str, float]:
    limits = torch.finfo(dtype)
    return {
        "zero": 0.0,
        "largest": limits.max,
        "least": limits.min,
        "tiny": limits.smallest_normal,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("background", ["zero", "largest", "least"])
def test_is_finite_detects_one_bad_value_at_any_position(dtype, background):
    """The background may be the largest values, whose sum would overflow."""
    values = special_values(dtype)
    for size in (1, 7, 64, 1003):
        for where in {0, size // 2, size - 1}:
            for value in values.values():
                tensor = torch.full((size,), values[background], dtype=torch.float64).to(dtype)
                tensor[where] = torch.tensor(value, dtype=torch.float64).to(dtype)
                want = bool(tensor.to(torch.float64).isfinite().all())
                assert is_finite(tensor) == want, (size, where, value)


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.itemsize <= 2], ids=str)
def test_is_finite_for_every_bit_pattern(dtype):
    if dtype.itemsize == 1:
        patterns = torch.arange(256, dtype=torch.uint8).view(dtype)
    else:  # all exponents and signs, with mantissas of every kind
        high = torch.arange(-(2**15), 2**15, 16).repeat_interleave(4)
        patterns = (high + torch.tensor([0, 1, 8, 15]).repeat(4096)).to(torch.int16).view(dtype)
    want = patterns.to(torch.float64).isfinite().tolist()
    assert [is_finite(pattern) for pattern in patterns] == want


def test_is_finite_for_integers_empty_and_complex_tensors():
    assert is_finite(torch.tensor([True, False]))
    assert is_finite(torch.tensor([2**63 - 1]))
    assert is_finite(torch.empty(0))
    assert is_finite(torch.empty(2, 0, dtype=torch.float8_e5m2))
    assert is_finite(torch.tensor([1 + 2j]))
    assert not is_finite(torch.tensor([complex(0, math.nan)]))
    assert not is_finite(torch.tensor([[1.0, math.nan]]).T)


def test_nonfinite_tensors_are_refused_unless_allowed(tmp_path):
    write_checkpoint(tmp_path / "x", {"good": torch.ones(2), "bad": torch.tensor([0, math.inf])})
    with CheckpointReader(tmp_path / "x") as reader:
        assert reader.get("good").sum() == 2
        with pytest.raises(InputError, match=r"model\.safetensors: tensor 'bad'.*allow_nonfinite"):
            reader.get("bad")
    with CheckpointReader(tmp_path / "x", allow_nonfinite=True) as reader:
        assert reader.get("bad")[1] == math.inf
