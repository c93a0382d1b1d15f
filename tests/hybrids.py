"""Random hybrids with every kind of block, in float64 by default."""

import torch

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM
from tiny import randomize

MIXED = [
    MambaSizes(4, 8, 2, 16),
    MLPSizes(48),
    AttentionSizes(4, 2, 8, qkv_bias=True, qk_norm=True),
    MLPSizes(64, "gelu"),
    MambaSizes(6, 8, 3, 4, conv_kernel=3, proj_bias=True, dt_min=0.01, dt_max=0.5),
    AttentionSizes(2, 2, 8, sliding_window=9),
    MLPSizes(40, "relu2", gated=False, bias=True),
    AttentionSizes(3, 1, 12, rope=False),
]
LAYOUTS = {
    "mixed": MIXED,
    "mamba only": [MIXED[0], MIXED[4]],
    "no attention": [MIXED[0], MIXED[1], MIXED[4]],
    "attention only": [MIXED[2], MIXED[3]],
}


def build(blocks, dtype=torch.float64, **fields):
    config = HybridConfig.from_blocks(
        blocks, vocab_size=64, hidden_size=32, max_position_embeddings=256, **fields
    )
    model = HybridForCausalLM(config).eval()
    randomize(model)
    return model.to(dtype)
