"""Greedy decoding with steps of fixed shape, which a GPU can replay as a CUDA graph."""

from collections.abc import Callable

import torch

from hybridize.modeling.cache.static import StaticHybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.rope_parameters import ROPE_TYPES

PREFILL_TOKENS = 65536
"""Number of prompt tokens per prefill call. More do not run faster, and need more memory."""

_WARMUP_STEPS = 3  # as in PyTorch's documentation of CUDA graphs


def cuda_graph_obstacle(config: HybridConfig) -> str | None:
    """Return why a CUDA graph cannot replay a model's decoding step; None if it can."""
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if config.head_dim is not None and ROPE_TYPES[kind].length_dependent:
        return f"its RoPE has the type {kind!r}, whose frequencies depend on the length"
    return None


def prefill_batch_size(prompt_len: int) -> int:
    """Return how many prompts run in one prefill call."""
    return max(1, PREFILL_TOKENS // prompt_len)


class StaticDecoder:
    """Decodes greedily with a model and a cache at fixed memory addresses.

    Args:
        model: in evaluation mode.
        batch_size: number of sequences.
        capacity: largest number of tokens per sequence, prompt and answer together.

    Attributes:
        token: ``(batch_size, 1)``, the latest token of every sequence; each step overwrites it.
        cache: the cache of all sequences.
    """

    def __init__(self, model: HybridForCausalLM, batch_size: int, capacity: int) -> None:
        self._model = model
        self.cache = StaticHybridCache(
            model.config, batch_size, capacity, dtype=model.dtype, device=model.device
        )
        self.token = torch.zeros(batch_size, 1, dtype=torch.long, device=model.device)
        self._run_step: Callable[[], None] = self._step

    @torch.inference_mode()
    def capture_graph(self) -> None:
        """Capture a step as a CUDA graph; every later `step` replays it.

        Call it before `prefill`, because capturing runs steps and changes the cache.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compile kernels and allocate workspaces before capturing
            for _ in range(_WARMUP_STEPS):
                self.cache.reset_length()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.cache.reset_length()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._run_step = graph.replay

    def prefill(self, prompts: torch.Tensor) -> None:
        """Run the prompts, ``(batch_size, length)``, and choose the likeliest next tokens."""
        size = prefill_batch_size(prompts.shape[1])
        for first in range(0, len(prompts), size):
            self.prefill_sequences(prompts[first : first + size], first)

    @torch.inference_mode()
    def prefill_sequences(self, prompts: torch.Tensor, first: int) -> None:
        """Run prompts in one call; the first one is for the sequence with the index ``first``."""
        sequences = slice(first, first + len(prompts))
        outputs = self._model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        self.cache.copy_from(outputs.cache, sequences)
        self.token[sequences] = outputs.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def step(self) -> None:
        """Replace the latest token of every sequence by the likeliest next one."""
        self._run_step()

    def _step(self) -> None:
        outputs = self._model(input_ids=self.token, cache=self.cache, use_cache=True)
        self.token.copy_(outputs.logits[:, -1:].argmax(-1))
