"""The part of the text on which blocks are skipped: bounded for deep models, whole for others."""

import pytest
import torch

from hybridize.compress.prune.importance import skipping_text
from hybridize.data.packing import PackedDataset


@pytest.mark.parametrize(
    ("sequences", "blocks", "expected"),
    [
        (24, 16, range(24)),  # 12,288 tokens × 16 blocks
        (24, 60, range(0, 24, 3)),  # 4,096 tokens
        (24, 32, range(0, 24, 2)),  # 6,144 of 6,250 tokens
        (3, 96, range(3)),
        (1, 1000, range(1)),
    ],
)
def test_deep_models_take_less_of_the_text(sequences, blocks, expected):
    ids = torch.arange(sequences)[:, None].expand(-1, 512)
    found = skipping_text(PackedDataset(ids, torch.zeros_like(ids)), blocks)
    assert found.ids[:, 0].tolist() == list(expected)
    assert found.seq_idx.shape == found.ids.shape
