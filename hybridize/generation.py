"""`hybridize generate`: continuing a text."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import torch

from hybridize.checkpoints.load import check_tokens, load_model, load_tokenizer
from hybridize.errors import InputError
from hybridize.modeling.cache.compact import CacheFormat
from hybridize.modeling.devices import choose_device, choose_dtype


def generate(
    model: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    ssm_cache_dtype: str = "auto",
) -> Iterator[str]:
    """Continue a text, piece by piece as it is made.

    Args:
        model: a directory or a hub id.
        prompt: the text to go on from; the beginning of a document if empty.
        max_new_tokens: at most this many; fewer if the model ends the text.
        temperature: of sampling; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that have this much probability together.
        seed: of sampling.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``auto`` (float32 on a CPU, else the checkpoint's), ``float32``,
            ``bfloat16`` or ``float16``.
        kv_cache_dtype, ssm_cache_dtype: what the cache is stored in, see `CacheFormat`.

    Yields:
        Pieces of new text; the prompt is not repeated.

    Raises:
        InputError: the checkpoint or an option is wrong.
    """
    from transformers import TextIteratorStreamer

    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: it must be at least 1")
    if temperature < 0:
        raise InputError(f"--temperature {temperature}: it must not be negative")
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p}: it must be above 0 and at most 1")
    where = choose_device(device)
    stored = CacheFormat(kv_cache_dtype, ssm_cache_dtype)
    precision = choose_dtype(dtype, where)
    hybrid = load_model(model, dtype=precision, device=where, cache_format=stored)
    tokenizer = load_tokenizer(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(torch.long)
    if ids.shape[1] == 0:
        start = tokenizer.bos_token_id
        if start is None:
            raise InputError("--prompt: it is empty, and the tokenizer has no token to begin with")
        ids = torch.tensor([[start]])
    check_tokens(ids[0].tolist(), hybrid.config.vocab_size, model)
    ids = ids.to(where)
    torch.manual_seed(seed)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    failure: list[BaseException] = []

    def run() -> None:
        try:
            hybrid.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=streamer,
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                pad_token_id=pad,
                top_k=0 if temperature > 0 else None,
                **sampling,
            )
        except BaseException as error:
            failure.append(error)
            streamer.end()  # so that the reader below is not left waiting

    worker = Thread(target=run, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failure:
        raise failure[0]
