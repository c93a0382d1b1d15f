"""Run a model once: prefill a prompt, decode greedily, and take the time of both."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hybridize.errors import HybridizeError
from hybridize.evals.bench.machine import PeakMemory
from hybridize.evals.bench.results import Point


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        first_token: seconds until the first new token.
        decoding: seconds for the other new tokens.
        kv_bytes, state_bytes: what the cache holds at the end.
        working_bytes: the most memory taken beside the weights; None where it is not known.
    """

    first_token: float
    decoding: float
    kv_bytes: int
    state_bytes: int
    working_bytes: int | None


class Runner:
    """One loaded model, to be run again and again.

    Args:
        name: what the user calls it.
        backend: what runs it.
        model: the model, in evaluation mode.
    """

    def __init__(self, name: str, backend: str, model: PreTrainedModel) -> None:
        self.name, self.backend, self.model = name, backend, model
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters())

    @torch.inference_mode()
    def run(self, point: Point, seed: int) -> Sample:
        """Prefill random tokens and go on from them, taking the likeliest token each time.

        Raises:
            HybridizeError: there is not enough memory.
        """
        device = self.model.device
        generator = torch.Generator().manual_seed(seed)
        shape, vocabulary = (point.batch_size, point.prompt_len), self.model.config.vocab_size
        prompt = torch.randint(vocabulary, shape, generator=generator).to(device)
        memory = PeakMemory(device)
        memory.start()
        try:
            start = _now(device)
            outputs = self.model(input_ids=prompt, use_cache=True, logits_to_keep=1)
            token = outputs.logits[:, -1:].argmax(-1)
            first = _now(device)
            cache = outputs.cache
            for _ in range(point.gen_len - 1):
                outputs = self.model(input_ids=token, cache=cache, use_cache=True, logits_to_keep=1)
                token = outputs.logits[:, -1:].argmax(-1)
            last = _now(device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise HybridizeError(
                    f"{self.name}: {point} do not fit into memory; lower --batch-size or "
                    "--prompt-len"
                ) from error
            raise
        working = memory.stop()
        return Sample(first - start, last - first, *cache_bytes(cache), working)


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Return the bytes of keys and values, and of states and convolution windows."""
    kv = state = 0
    for layer in cache.layers:
        kv += _nbytes(getattr(layer, "keys", None)) + _nbytes(getattr(layer, "values", None))
        for states in (
            getattr(layer, "conv_states", None),
            getattr(layer, "recurrent_states", None),
        ):
            held = states.values() if isinstance(states, dict) else (states,)
            state += sum(_nbytes(tensor) for tensor in held)
    return kv, state


def _nbytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
