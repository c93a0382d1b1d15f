"""Running a model while only one of its blocks is in memory."""

import torch
from torch import nn

from hybridize.checkpoints.tensors import Tensors
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.materialize import compute_rope, materialize, on_meta
from hybridize.modeling.model import HybridBlock, HybridForCausalLM
from hybridize.modeling.model_spec import ModelSpec


class BlockwiseModel:
    """A model whose blocks are read from a checkpoint one at a time.

    Args:
        tensors: the source of the weights.
        spec: the model.
        device: the device on which blocks run, in float32.

    Attributes:
        config: the model's configuration.
    """

    def __init__(
        self, tensors: Tensors, spec: ModelSpec, device: torch.device | str = "cpu"
    ) -> None:
        self.config = HybridConfig.from_spec(spec)
        self._tensors, self._device = tensors, torch.device(device)
        self._empty = on_meta(lambda: HybridForCausalLM(self.config)).eval()
        compute_rope(self._empty, device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed tokens: ``(batch, length)`` to ``(batch, length, hidden)``."""
        table = self._tensors.get("model.embed_tokens.weight")
        embeddings = nn.functional.embedding(ids, table).to(self._device, torch.float32)
        return embeddings * self.config.embedding_multiplier

    def context(self, x: torch.Tensor, seq_idx: torch.Tensor | None = None) -> BlockContext:
        """Return the context in which blocks process ``x``; see `HybridForCausalLM.forward`."""
        return self._empty.model.block_context(x, seq_idx)

    def final_norm(self) -> RMSNorm:
        """Read the norm that comes before the head."""
        norm = RMSNorm(self.config.hidden_size, self.config.norm_eps).requires_grad_(False)
        norm.weight.copy_(self._tensors.get("model.norm.weight"))
        return norm.to(self._device)

    def block(self, index: int) -> HybridBlock:
        """Read a block. It stays in memory only as long as the caller keeps it."""
        return materialize(
            lambda: HybridBlock(self.config, self.config.blocks[index], index),
            lambda name: self._tensors.get(f"model.blocks.{index}.{name}"),
            self._device,
        )
