"""The KL divergence of a changed model from the original, on next-token distributions.

Selection, pruning, quantization and distillation measure it here. Only the kl stage with stored
teacher predictions calls its kernel directly.

- `measure_kl` compares two models on a dataset.
- `KLProbe` compares a model with itself, before and after some of its blocks were changed in
  place. It can start at the changed block, from the block's input, and it computes the original's
  predictions only once. `kl_probes` makes one probe for each batch of a dataset.
- `kl_from_hidden` compares two sets of last hidden states. It is differentiable, so that it also
  serves as a training loss.

All values are KL(original ‖ changed), the mean over tokens, in nats per token. The logits of the
whole vocabulary are never in memory at once; see `hybridize.kernels.linear_kl_divergence`.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import torch

from hybridize.data.kept_predictions import KeptPredictions
from hybridize.data.packing import PackedDataset
from hybridize.kernels import linear_kl_divergence
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.sharded_weight import whole_weight

_TOKENS_PER_BATCH = 4096


def kl_from_hidden(
    model: HybridForCausalLM,
    hidden: torch.Tensor,
    original: HybridForCausalLM,
    original_hidden: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """Return the KL divergence of one model from another, given their last hidden states.

    Args:
        model: the changed model; gives the head and the scale of the logits.
        hidden: ``(..., hidden)``, the output of its last norm.
        original: the model that it is compared with.
        original_hidden: ``(..., hidden)``, for the same tokens.
        options: passed to `hybridize.kernels.linear_kl_divergence`: the temperature, labels.

    Returns:
        A scalar, differentiable with respect to ``hidden`` and the head of ``model``.
    """
    head = whole_weight(model.lm_head.weight)
    original_head = whole_weight(original.lm_head.weight)
    return linear_kl_divergence(
        hidden.to(head.dtype).flatten(0, -2),
        head,
        original_hidden.to(original_head.dtype).flatten(0, -2),
        original_head,
        scales=(1 / model.config.logits_scaling, 1 / original.config.logits_scaling),
        **options,
    )


@torch.no_grad()
def measure_kl(
    model: HybridForCausalLM,
    original: HybridForCausalLM,
    dataset: PackedDataset,
    original_hidden: Iterable[torch.Tensor] | None = None,
) -> float:
    """Return the KL divergence of a model from the original on a dataset, in nats per token.

    Both models run on the device of ``original``.

    Args:
        model: the changed model.
        original: the model that it is compared with.
        dataset: the text.
        original_hidden: what `hidden_batches` yields for ``original``; computed here if None.
    """
    total = 0.0
    expected = hidden_batches(original, dataset) if original_hidden is None else original_hidden
    batches = zip(index_batches(dataset), hidden_batches(model, dataset), expected, strict=True)
    for indices, hidden, of_original in batches:
        kl = kl_from_hidden(model, hidden, original, of_original)
        total += float(kl) * len(indices) / len(dataset)
    return total


@torch.no_grad()
def hidden_batches(model: HybridForCausalLM, dataset: PackedDataset) -> Iterator[torch.Tensor]:
    """Yield a model's last hidden states, ``(sequences, length, hidden)``, for each batch."""
    for indices in index_batches(dataset):
        ids, seq_idx = (part.to(model.device) for part in dataset.sequences(indices))
        output = model.model(ids, seq_idx=seq_idx, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        yield hidden


class KLProbe:
    """A batch of text and the model's predictions for it. It measures later changes of blocks.

    The original's predictions are computed once and kept (`KeptPredictions`). The embeddings and
    the head must therefore not change.

    Args:
        model: unchanged so far, in float32 or wider.
        ids, seq_idx: ``(sequences, length)``, as `PackedDataset.sequences` returns them.
        labels: ``(sequences, length)``, measure the rise of the cross-entropy to these tokens
            instead of the KL divergence; tokens with a negative label do not count.
        layers: indices of blocks whose inputs are kept.

    Attributes:
        num_sequences: number of sequences in this batch.
        inputs: the inputs of the blocks in ``layers``, in the unchanged model.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HybridForCausalLM,
        ids: torch.Tensor,
        seq_idx: torch.Tensor,
        labels: torch.Tensor | None = None,
        layers: Container[int] = (),
    ) -> None:
        self._model, self.num_sequences = model, len(ids)
        embedded = model.model.embed_tokens(ids.to(model.device))
        self._embedded = embedded * model.config.embedding_multiplier
        self._context = model.model.block_context(self._embedded, seq_idx.to(model.device))
        self._counted = None if labels is None else (labels >= 0).to(model.device)
        self.inputs: dict[int, torch.Tensor] = {}
        self._predictions = KeptPredictions(
            self._counted_rows(self._run(self._embedded, 0, layers, self.inputs)),
            model.lm_head.weight,
            1 / model.config.logits_scaling,
            None if labels is None else labels[labels >= 0].to(model.device),
        )

    def block_inputs(self, layers: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each layer's index and the current input of its block.

        Args:
            layers: indices of blocks, in ascending order.
        """
        x = self._embedded
        for layer_idx, block in enumerate(self._model.model.blocks[: layers[-1] + 1]):
            if layer_idx in layers:
                yield layer_idx, x
            x = block(x, self._context)

    def kl(self, x: torch.Tensor | None = None, layer_idx: int = 0) -> float:
        """Return the mean over the counted tokens of what `measure` returns."""
        return float(self.measure(x, layer_idx)[0].mean())

    @torch.no_grad()
    def measure(
        self, x: torch.Tensor | None = None, layer_idx: int = 0, layers: Container[int] = ()
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Return the KL divergence of the current model from the original for each counted token.

        With labels, return the rise of the cross-entropy.

        Args:
            x: ``(sequences, length, hidden)``, the input of the block at ``layer_idx``; the
                embeddings if None.
            layer_idx: index of the block at which the model starts.
            layers: indices of blocks whose inputs are returned too.

        Returns:
            ``(tokens,)`` float64, in nats, and the inputs of the blocks in ``layers``.
        """
        inputs: dict[int, torch.Tensor] = {}
        start = self._embedded if x is None else x
        hidden = self._run(start, layer_idx, layers, inputs)
        return self._predictions.rise(self._counted_rows(hidden)), inputs

    def _counted_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of the counted tokens, ``(tokens, hidden)``."""
        hidden = hidden.to(self._model.lm_head.weight.dtype)
        return hidden.flatten(0, 1) if self._counted is None else hidden[self._counted]

    def _run(
        self, x: torch.Tensor, start: int, layers: Container[int], inputs: dict[int, torch.Tensor]
    ) -> torch.Tensor:
        """Return the last hidden states, given the input of the block at ``start``."""
        blocks = self._model.model.blocks
        for layer_idx in range(start, len(blocks)):
            if layer_idx in layers:
                inputs[layer_idx] = x
            x = blocks[layer_idx](x, self._context)
        last: torch.Tensor = self._model.model.norm(x)
        return last


def kl_probes(model: HybridForCausalLM, dataset: PackedDataset) -> Iterator[KLProbe]:
    """Yield a probe for each batch of a dataset.

    The mean over the dataset weights each probe by its ``num_sequences``.
    """
    for indices in index_batches(dataset):
        yield KLProbe(model, *dataset.sequences(indices))


def index_batches(dataset: PackedDataset) -> Sequence[torch.Tensor]:
    """Return the indices of the sequences in each batch of about 4,096 tokens."""
    return torch.arange(len(dataset)).split(max(1, _TOKENS_PER_BATCH // dataset.length))
