"""`hybridize generate`: continue a text."""

from collections.abc import Generator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.load import check_tokens, load_model, load_tokenizer
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from hybridize.file_names import is_utf8
from hybridize.generate_config import GenerateConfig
from hybridize.modeling.cache.format import CacheFormat
from hybridize.modeling.devices import choose_device, choose_dtype
from hybridize.options import takes_options

_UNSUPPORTED: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "cache_implementation": None,
    "cache_config": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "return_dict_in_generate": False,
    "use_mtp": False,
}
"""Fields of generation_config.json that do not fit one continuation of one text, and the value that
means nothing."""


@takes_options(GenerateConfig)
def generate(model: str | Path, prompt: str, config: GenerateConfig) -> Generator[str, None, None]:
    """Continue a text; yield each piece of new text as soon as it is generated.

    Args:
        model: a directory or a hub id.
        prompt: the text to continue; empty for the beginning of a document.
        config: the options; or give each option as a keyword.

    Yields:
        Pieces of new text, without the prompt.

    Raises:
        InputError: the checkpoint or an option is wrong.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList, TextIteratorStreamer

    if not is_utf8(prompt):
        raise InputError("`prompt`: is not UTF-8 text; give it in UTF-8")
    device = choose_device(config.device)
    directory = resolve(model)
    hybrid = load_model(
        directory,
        dtype=choose_dtype(config.dtype, device),
        device=device,
        cache_format=CacheFormat(config.kv_cache_dtype, config.ssm_cache_dtype),
    )
    tokenizer = load_tokenizer(directory)
    ids = _encode(prompt, tokenizer)
    check_tokens(ids[0].tolist(), hybrid.config.vocab_size, model)
    ids = ids.to(device)
    torch.manual_seed(config.seed)
    _leave_out_unsupported(hybrid.generation_config, model)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    failure: list[BaseException] = []
    abandoned = Event()

    def run() -> None:
        try:
            hybrid.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=streamer,
                max_new_tokens=config.max_new_tokens,
                pad_token_id=pad,
                tokenizer=tokenizer,  # for stop_strings
                logits_processor=LogitsProcessorList([_Finite(model)]),
                stopping_criteria=StoppingCriteriaList([_Abandoned(abandoned)]),
                **_sampling(config),
            )
        except BaseException as error:
            failure.append(error)
            streamer.end()  # so that the loop below ends

    worker = Thread(target=run, daemon=True)
    worker.start()
    try:
        # An empty piece may come before a failure, and says nothing.
        yield from filter(None, streamer)
    finally:  # a thread that computes while the interpreter ends would abort the process
        abandoned.set()
        worker.join()
    if failure:
        raise failure[0]


class _Abandoned:
    """A stopping criterion that ends the generation when nobody reads the text any more."""

    def __init__(self, abandoned: Event) -> None:
        self._abandoned = abandoned

    def __call__(self, ids: torch.Tensor, _scores: torch.Tensor) -> torch.Tensor:
        return torch.full((len(ids),), self._abandoned.is_set(), device=ids.device)


class _Finite:
    """A logits processor that ends the generation if the model overflows.

    The likeliest token of NaN logits is an arbitrary one, so the text would mean nothing.
    """

    def __init__(self, model: str | Path) -> None:
        self._model = model

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool((scores.isnan() | scores.isposinf()).any()):
            raise HybridizeError(
                f"{self._model}: the model computes NaN or infinity; check its weights, or "
                "generate with `dtype=float32`"
            )
        return scores


def _leave_out_unsupported(settings: Any, model: str | Path) -> None:
    """Remove from a model's generation_config what cannot stream one continuation, with a note."""
    names = [name for name, value in _UNSUPPORTED.items()
             if getattr(settings, name, value) not in (value, None)]  # fmt: skip
    for name in names:
        setattr(settings, name, _UNSUPPORTED[name])
    if names:
        console.note(f"{model}: generate ignores {', '.join(names)} of generation_config.json")


def _encode(prompt: str, tokenizer: Any) -> torch.Tensor:
    """Return the prompt's token ids, ``(1, length)``; an empty prompt becomes the BOS token."""
    ids: torch.Tensor = tokenizer(prompt, return_tensors="pt").input_ids.to(torch.long)
    if ids.shape[1] > 0:
        return ids
    if tokenizer.bos_token_id is None:
        raise InputError("`prompt` is empty, and the tokenizer has no BOS token to start from")
    return torch.tensor([[tokenizer.bos_token_id]])


def _sampling(config: GenerateConfig) -> dict[str, Any]:
    if config.temperature == 0:
        return {"do_sample": False, "top_k": None}
    return {
        "do_sample": True,
        "top_k": 0,
        "temperature": config.temperature,
        "top_p": config.top_p,
    }
