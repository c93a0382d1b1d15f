"""Two ways to run a model: launch every operation, or replay recorded decoding steps."""

from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from hybridize.errors import InputError
from hybridize.evals.bench.results import Point
from hybridize.modeling.decoding import StaticDecoder, cuda_graph_obstacle
from hybridize.modeling.model import HybridForCausalLM


class Decoder(Protocol):
    """A model and its cache for a batch of sequences."""

    @property
    def cache(self) -> Cache:
        """Return the current cache."""

    def prefill(self, prompts: torch.Tensor) -> None:
        """Read prompts ``(batch, length)`` and choose the next token of each."""

    def step(self) -> None:
        """Generate one more token of each sequence."""


class EagerDecoder:
    """Launches every operation separately; the cache grows with every step.

    Args:
        model: a model of hybridize or of transformers, in evaluation mode.
    """

    cache: Cache

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def prefill(self, prompts: torch.Tensor) -> None:
        """Read prompts ``(batch, length)`` and choose the next token of each."""
        outputs = self._model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        self.cache, self._token = outputs.cache, outputs.logits[:, -1:].argmax(-1)

    def step(self) -> None:
        """Generate one more token of each sequence."""
        outputs = self._model(
            input_ids=self._token, cache=self.cache, use_cache=True, logits_to_keep=1
        )
        self._token = outputs.logits[:, -1:].argmax(-1)


def make_decoder(model: PreTrainedModel, decoding: str, point: Point) -> Decoder:
    """Make the decoder of a model at a point, ready for its prompts.

    Args:
        model: in evaluation mode.
        decoding: the return value of `choose_decoding`.
        point: the sizes.
    """
    if decoding == "eager":
        return EagerDecoder(model)
    assert isinstance(model, HybridForCausalLM)
    decoder = StaticDecoder(model, point.batch_size, point.context)
    decoder.capture_graph()
    return decoder


def choose_decoding(requested: str, model: PreTrainedModel, name: str) -> str:
    """Return ``"graph"`` or ``"eager"``; ``auto`` is ``"graph"`` where CUDA graphs are supported.

    Raises:
        InputError: CUDA graphs were requested but are not supported.
    """
    if model.device.type != "cuda":
        obstacle: str | None = "only a GPU can replay recorded steps"
    elif not isinstance(model, HybridForCausalLM):
        obstacle = "steps of transformers' own models cannot be recorded"
    elif model.model.cache_format.compact:
        obstacle = "a cache in fewer bits has no fixed addresses"
    else:
        obstacle = cuda_graph_obstacle(model.config)
    if requested == "graph" and obstacle is not None:
        raise InputError(f"`decoding=graph`: {name}: {obstacle}")
    return "eager" if requested == "eager" or obstacle is not None else "graph"
