"""The largest batch that fits into a GPU, found by trying."""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hybridize.errors import HybridizeError
from hybridize.evals.bench.results import Point
from hybridize.modeling.cache.static import bytes_per_sequence
from hybridize.modeling.decoding import StaticDecoder, rows_at_once
from hybridize.modeling.model import HybridForCausalLM


def largest_batch(guess: int, fits: Callable[[int], bool]) -> int:
    """Go down from a batch that may be too large to one that fits; 0 if none does.

    A twentieth at a time: the first step down already makes room for what reading a prompt takes.
    """
    while guess > 0 and not fits(guess):
        guess -= max(1, guess // 20)
    return guess


@torch.inference_mode()
def fill_gpu(name: str, model: PreTrainedModel, point: Point) -> Point:
    """Return ``point`` with as many sequences as fit beside all that is already on the GPU.

    Args:
        name: what the user calls the model.
        model: on the GPU, to be run with recorded steps.
        point: its batch is what is looked for.

    Raises:
        HybridizeError: not even one fits.
    """
    assert isinstance(model, HybridForCausalLM)
    _free_memory()
    free, _ = torch.cuda.mem_get_info(model.device)
    each = bytes_per_sequence(model.config, point.context, model.dtype.itemsize)

    def fits(batch: int) -> bool:
        enough = True
        try:
            _take_memory(model, replace(point, batch_size=batch))
        except torch.OutOfMemoryError:
            enough = False
        _free_memory()  # here, where no frame of what failed holds on to it any more
        return enough

    batch = largest_batch(free // each, fits)
    if batch == 0:
        raise HybridizeError(
            f"{name}: not one sequence of {point.context:,} tokens fits into the GPU's memory; "
            "lower --prompt-len or measure models one by one"
        )
    return replace(point, batch_size=batch)


def _take_memory(model: HybridForCausalLM, point: Point) -> None:
    """Do once all that takes memory: the cache, a recorded step, and prompts that are read."""
    decoder = StaticDecoder(model, point.batch_size, point.context)
    decoder.record()
    rows = min(point.batch_size, rows_at_once(point.prompt_len))
    prompts = torch.zeros(rows, point.prompt_len, dtype=torch.long, device=model.device)
    decoder.read(prompts, 0)  # the others come after these and take no more
    torch.cuda.synchronize(model.device)


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()
