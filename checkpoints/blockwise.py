"""Running a model of which one block at a time is in memory."""

import torch
from torch import nn

from hybridize.checkpoints.tensors import Tensors
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.materialize import compute_rope, materialize, on_meta
from hybridize.modeling.model import HybridBlock, HybridForCausalLM


class BlockwiseModel:
    """A model that reads each block's weights when it is that block's turn.

    Args:
        tensors: where the weights are read from.
        config: the model's configuration.
        device: where blocks run, in float32.
    """

    def __init__(
        self, tensors: Tensors, config: HybridConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self._tensors, self._device = tensors, torch.device(device)
        self._empty = on_meta(lambda: HybridForCausalLM(config)).eval()
        compute_rope(self._empty, device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what the first block sees: ``(batch, length)`` to ``(batch, length, hidden)``."""
        table = self._tensors.get("model.embed_tokens.weight")
        rows = nn.functional.embedding(ids, table).to(self._device, torch.float32)
        return rows * self.config.embedding_multiplier

    def context(self, x: torch.Tensor, seq_idx: torch.Tensor | None = None) -> BlockContext:
        """Return the blocks' surroundings for ``x``, see `HybridForCausalLM.forward`."""
        return self._empty.model.block_context(x, seq_idx)

    def last_norm(self) -> RMSNorm:
        """Read the norm in front of the head."""
        norm = RMSNorm(self.config.hidden_size, self.config.norm_eps).requires_grad_(False)
        norm.weight.copy_(self._tensors.get("model.norm.weight"))
        return norm.to(self._device)

    def block(self, index: int) -> HybridBlock:
        """Read one block's weights; it lives for as long as the caller holds on to it."""
        return materialize(
            lambda: HybridBlock(self.config, self.config.blocks[index], index),
            lambda name: self._tensors.get(f"model.blocks.{index}.{name}"),
            self._device,
        )
