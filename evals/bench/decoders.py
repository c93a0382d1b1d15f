"""The ways in which a model is run: launched step by step, or recorded once and replayed."""

from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from hybridize.errors import InputError
from hybridize.evals.bench.results import Point
from hybridize.modeling.decoding import StaticDecoder, why_not_recorded
from hybridize.modeling.model import HybridForCausalLM

DECODINGS = ("auto", "eager", "graph")


class Decoder(Protocol):
    """A model with what it remembers of some sequences."""

    @property
    def cache(self) -> Cache:
        """Return what it remembers now."""

    def prefill(self, prompts: torch.Tensor) -> None:
        """Read prompts, ``(batch, length)``, and choose a token after each."""

    def step(self) -> None:
        """Go on by one token each."""


class EagerDecoder:
    """Launches each operation when its turn comes; the cache grows.

    Args:
        model: hybridize's or transformers' own, in evaluation mode.
    """

    cache: Cache

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def prefill(self, prompts: torch.Tensor) -> None:
        """See `Decoder.prefill`."""
        outputs = self._model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        self.cache, self._token = outputs.cache, outputs.logits[:, -1:].argmax(-1)

    def step(self) -> None:
        """See `Decoder.step`."""
        outputs = self._model(
            input_ids=self._token, cache=self.cache, use_cache=True, logits_to_keep=1
        )
        self._token = outputs.logits[:, -1:].argmax(-1)


def make_decoder(model: PreTrainedModel, decoding: str, point: Point) -> Decoder:
    """Make what runs a model at a point, ready for its prompts.

    Args:
        model: in evaluation mode.
        decoding: what `choose_decoding` returned.
        point: the sizes.
    """
    if decoding == "eager":
        return EagerDecoder(model)
    assert isinstance(model, HybridForCausalLM)
    decoder = StaticDecoder(model, point.batch_size, point.context)
    decoder.record()
    return decoder


def choose_decoding(wanted: str, model: PreTrainedModel, name: str) -> str:
    """Return ``"graph"`` or ``"eager"``; ``auto`` takes a graph wherever there can be one.

    Raises:
        InputError: a graph is asked for and cannot be had.
    """
    if wanted not in DECODINGS:
        raise InputError(f"--decoding {wanted}: choose among {', '.join(DECODINGS)}")
    obstacle = None
    if model.device.type != "cuda":
        obstacle = "only a GPU replays steps"
    elif not isinstance(model, HybridForCausalLM):
        obstacle = "transformers' runtime has no steps that can be recorded"
    elif model.model.cache_format.compact:
        obstacle = "a cache that is stored in fewer bits does not stay in its place"
    else:
        obstacle = why_not_recorded(model.config)
    if wanted == "graph" and obstacle is not None:
        raise InputError(f"--decoding graph: {name}: {obstacle}")
    return "eager" if wanted == "eager" or obstacle is not None else "graph"
