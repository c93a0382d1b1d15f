import pytest
import torch

from disk import Tensors


@pytest.fixture
def few() -> Tensors:
    """Three small tensors."""
    return {
        "a": torch.arange(12.0).reshape(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.ones(7, dtype=torch.bfloat16),
    }
