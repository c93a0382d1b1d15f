"""What changing a block does to a model's next-token distribution."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from hybridize.data.packing import PackedDataset
from hybridize.kernels import linear_kl_divergence
from hybridize.modeling.model import HybridForCausalLM

_TOKENS_AT_ONCE = 4096


def batches_of(dataset: PackedDataset) -> Iterable[torch.Tensor]:
    """Return row numbers, as many at a time as a probe should have."""
    rows = max(1, _TOKENS_AT_ONCE // dataset.length)
    return torch.arange(len(dataset)).split(rows)


class Probe:
    """Some text and what a model makes of it, to hold changed versions of its blocks against.

    Args:
        model: as it is when it is not changed.
        ids, seq_idx: ``(rows, length)``.

    Attributes:
        rows: of the text.
    """

    def __init__(self, model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor) -> None:
        self._model, self.rows = model, len(ids)
        self._embedded = model.model.embed_tokens(ids.to(model.device))
        self._embedded = self._embedded * model.config.embedding_multiplier
        self._context = model.model.block_context(self._embedded, seq_idx.to(model.device))
        self._wanted = self._run(self._embedded, 0)

    def inputs(self, places: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield what the blocks at some places see in the model as it is now."""
        x = self._embedded
        for place, block in enumerate(self._model.model.blocks[: places[-1] + 1]):
            if place in places:
                yield place, x
            x = block(x, self._context)

    def divergence(self, x: torch.Tensor, place: int) -> float:
        """Return the KL divergence of the model as it is now from what it was.

        Args:
            x: the input of a block, ``(rows, length, hidden)``.
            place: that block's place.

        Returns:
            Nats per token.
        """
        head = self._model.lm_head.weight
        scale = 1 / self._model.config.logits_scaling
        return float(
            linear_kl_divergence(
                self._run(x, place), head, self._wanted, head, scales=(scale, scale)
            )
        )

    def _run(self, x: torch.Tensor, place: int) -> torch.Tensor:
        for block in self._model.model.blocks[place:]:
            x = block(x, self._context)
        return self._model.model.norm(x).flatten(0, 1)
