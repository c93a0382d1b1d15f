from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from disk import Tensors
from hub_stub import StubHub, stub_hub, use_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """An empty hub, with an empty cache in ``tmp_path / "cache"``."""
    with stub_hub() as hub:
        use_hub(monkeypatch, hub.address, tmp_path / "cache")
        yield hub


@pytest.fixture
def few() -> Tensors:
    """Three small tensors."""
    return {
        "a": torch.arange(12.0).reshape(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.ones(7, dtype=torch.bfloat16),
    }
