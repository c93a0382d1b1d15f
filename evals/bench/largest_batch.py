"""Find by trial the largest batch that fits into a GPU's memory."""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hybridize.errors import HybridizeError
from hybridize.evals.bench.results import Point
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.decoding import StaticDecoder, prefill_batch_size
from hybridize.modeling.model import HybridForCausalLM


def largest_batch(guess: int, fits: Callable[[int], bool]) -> int:
    """Lower a batch size that may be too large until the batch fits; return 0 if none does.

    Each failed trial lowers it by 5%. One such decrease frees enough memory for the prefill.
    """
    while guess > 0 and not fits(guess):
        guess -= max(1, guess // 20)
    return guess


@torch.inference_mode()
def fill_gpu(name: str, model: PreTrainedModel, point: Point) -> Point:
    """Return ``point`` with the largest batch that fits into the GPU's free memory.

    Args:
        name: the user's name of the model.
        model: on the GPU; its steps are recorded.
        point: the sizes; its batch size is ignored.

    Raises:
        HybridizeError: not even one sequence fits.
    """
    assert isinstance(model, HybridForCausalLM)
    _free_memory()
    free, _ = torch.cuda.mem_get_info(model.device)
    itemsize = model.dtype.itemsize
    per_sequence = cache_cost(model.config, point.context, itemsize, preallocated=True).total

    def fits(batch: int) -> bool:
        enough = True
        try:
            _allocate(model, replace(point, batch_size=batch))
        except torch.OutOfMemoryError:
            enough = False
        _free_memory()  # outside of `except`, which would keep the failed frames' tensors alive
        return enough

    batch = largest_batch(free // per_sequence, fits)
    if batch == 0:
        raise HybridizeError(
            f"{name}: not one sequence of {point.context:,} tokens fits into the GPU's memory; "
            "lower `prompt_len` or measure the models one by one"
        )
    return replace(point, batch_size=batch)


def _allocate(model: HybridForCausalLM, point: Point) -> None:
    """Do once everything that needs memory: the cache, a recorded step, and a prefill."""
    decoder = StaticDecoder(model, point.batch_size, point.context)
    decoder.capture_graph()
    rows = min(point.batch_size, prefill_batch_size(point.prompt_len))
    prompts = torch.zeros(rows, point.prompt_len, dtype=torch.long, device=model.device)
    decoder.prefill_sequences(prompts, 0)  # the other prompts are read later and reuse this memory
    torch.cuda.synchronize(model.device)


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()
