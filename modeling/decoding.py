"""Greedy decoding in steps that are always the same, and on a GPU are recorded and replayed."""

from collections.abc import Callable

import torch

from hybridize.modeling.cache.static import StaticHybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.model import HybridForCausalLM

PREFILL_TOKENS = 65536
"""Tokens of prompts that are read at once: beyond it a GPU is busy, and activations take memory."""

_WARM_UPS = 3  # what CUDA's documentation of graphs in PyTorch takes
_MOVING_ROPE = ("dynamic", "longrope")


def why_not_recorded(config: HybridConfig) -> str | None:
    """Return what keeps a model's step from being the same for every length; None if nothing."""
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if config.head_dim is not None and kind in _MOVING_ROPE:
        return f"its RoPE is of the type {kind!r}, whose frequencies depend on the length"
    return None


def rows_at_once(prompt_len: int) -> int:
    """Return how many prompts are read at once."""
    return max(1, PREFILL_TOKENS // prompt_len)


class StaticDecoder:
    """A model, a cache at fixed addresses, and the last token of every sequence.

    Args:
        model: in evaluation mode.
        batch_size: sequences.
        capacity: tokens that each may have, prompt and answer together.

    Attributes:
        token: ``(batch_size, 1)``, the latest ones; overwritten by every step.
        cache: what the model remembers.
    """

    def __init__(self, model: HybridForCausalLM, batch_size: int, capacity: int) -> None:
        self._model = model
        self.cache = StaticHybridCache(
            model.config, batch_size, capacity, dtype=model.dtype, device=model.device
        )
        self.token = torch.zeros(batch_size, 1, dtype=torch.long, device=model.device)
        self._run: Callable[[], None] = self._step

    @torch.inference_mode()
    def record(self) -> None:
        """Record a step as a CUDA graph, which every `step` from now on replays.

        To be called before `prefill`: recording runs the step on whatever there is.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and workspaces made outside
            for _ in range(_WARM_UPS):
                self.cache.rewind()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.cache.rewind()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._run = graph.replay

    def prefill(self, prompts: torch.Tensor) -> None:
        """Read prompts, ``(batch_size, length)``, and take the likeliest next tokens."""
        rows = rows_at_once(prompts.shape[1])
        for first in range(0, len(prompts), rows):
            self.read(prompts[first : first + rows], first)

    @torch.inference_mode()
    def read(self, prompts: torch.Tensor, first: int) -> None:
        """Read the prompts of some sequences, ``first`` and those after it, all at once."""
        rows = slice(first, first + len(prompts))
        outputs = self._model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        self.cache.take(rows, outputs.cache)
        self.token[rows] = outputs.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def step(self) -> None:
        """Put the likeliest next token in place of each last one."""
        self._run()

    def _step(self) -> None:
        outputs = self._model(input_ids=self.token, cache=self.cache, use_cache=True)
        self.token.copy_(outputs.logits[:, -1:].argmax(-1))
