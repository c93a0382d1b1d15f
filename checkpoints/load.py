"""Loading a checkpoint of any supported format as hybridize's own model."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.carried_files import copied_files
from hybridize.checkpoints.files import refuse_pointer
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.generation_config import read_generation_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.quantization import FP8
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.console import console
from hybridize.errors import InputError, first_line
from hybridize.file_names import utf8_path
from hybridize.modeling.cache.format import CacheFormat
from hybridize.modeling.layers.fp8_linear import FP8Linear
from hybridize.modeling.materialize import on_meta, set_parameters
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes


def load_model(
    model: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    shared: Mapping[str, torch.nn.Parameter] | None = None,
    cache_format: CacheFormat | None = None,
) -> HybridForCausalLM:
    """Load a checkpoint: Llama, Mistral, Qwen, or a hybrid in any supported format.

    Args:
        model: a directory or a hub id.
        dtype: the dtype of the parameters; None keeps that of the checkpoint.
        device: the device of the parameters.
        shared: the parameters of another model by name. A parameter of it is reused if its
            values equal those of the checkpoint, rounded to the parameter's dtype.
        cache_format: the dtypes in which the cache is stored; see `CacheFormat`.

    Returns:
        The model, in evaluation mode. Use transformers' ``AutoModelForCausalLM`` to get the class
        that transformers has for the checkpoint.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    directory = resolve(model)
    with CheckpointReader(directory) as reader:
        format_, config = read_config(reader, quantized=True)
        tensors = CheckpointTensors(reader, format_, config)

        def parameter(name: str) -> torch.nn.Parameter:
            tensor = tensors.get(name)
            existing = (shared or {}).get(name)
            if existing is not None and torch.equal(existing.cpu(), tensor.to(existing.dtype)):
                return existing
            tensor = tensor.to(device=device, dtype=dtype)
            return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())

        result = model_on_meta(tensors, config, parameter, device)
        total = sum(math.prod(shape) for shape in parameter_shapes(config).values())
        with console.progress("loading", total, "parameters") as progress:

            def counted(name: str) -> torch.nn.Parameter:
                loaded = parameter(name)
                progress.advance(loaded.numel())
                return loaded

            set_parameters(result, counted, device)
    result.model.cache_format = cache_format or CacheFormat()
    result.config.dtype = result.dtype
    result.name_or_path = str(directory)
    result.generation_config = read_generation_config(directory) or result.generation_config
    return result.eval()


def model_on_meta(
    tensors: CheckpointTensors,
    config: ModelSpec,
    parameter: Callable[[str], torch.nn.Parameter],
    device: str | torch.device,
) -> HybridForCausalLM:
    """Return a model on the meta device, but with the values of layers that are stored in FP8.

    Args:
        tensors: the checkpoint.
        config: the model.
        parameter: returns the bias of an FP8 layer by its name.
        device: the device of the FP8 layers.
    """
    hybrid_config = tensors.check_config()
    result = on_meta(lambda: HybridForCausalLM(hybrid_config))
    for name in parameter_shapes(config):
        if tensors.dtype(name) == FP8:
            layer = _fp8_linear(tensors, name).to(device)
            path = name.removesuffix(".weight")
            if getattr(result.get_submodule(path), "bias", None) is not None:
                layer.bias = parameter(f"{path}.bias")
            result.set_submodule(path, layer)
    return result


def _fp8_linear(tensors: CheckpointTensors, name: str) -> FP8Linear:
    assert tensors.quantization is not None
    scale, input_scale = tensors.scales(name)
    activations = tensors.quantization.activations
    return FP8Linear(
        tensors.get(name), scale, None, activations=activations, input_scale=input_scale
    )


def check_tokens(ids: Sequence[int], vocabulary: int, directory: str | Path) -> None:
    """Check that token ids are within a model's vocabulary.

    Args:
        ids: the token ids from the tokenizer.
        vocabulary: the size of the model's vocabulary.
        directory: the directory of the tokenizer and the model; the error names it.

    Raises:
        InputError: a token id is too large.
    """
    if max(ids, default=0) >= vocabulary:
        raise InputError(
            f"{directory}: the tokenizer gives token {max(ids)}, but the model's vocabulary has "
            f"only {vocabulary} tokens"
        )


def load_tokenizer(model: str | Path) -> Any:
    """Load the tokenizer of a checkpoint.

    Raises:
        InputError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    directory = resolve(model, weights=False)
    try:
        with utf8_path(directory) as name:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer.decode(tokenizer("a").input_ids)  # some damage shows only when it is used
        return tokenizer
    except Exception as error:  # transformers raises a different type for every kind of damage
        raise InputError(
            f"{directory}: no readable tokenizer: {_reason(directory, error)}"
        ) from error


def _reason(directory: Path, error: Exception) -> str:
    """Return why a tokenizer cannot be read."""
    from importlib.util import find_spec

    for path in copied_files(directory):
        refuse_pointer(path)
    # transformers then advises another package, which does not help.
    only_sentencepiece = (directory / "tokenizer.model").is_file() and not (
        directory / "tokenizer.json"
    ).is_file()
    if only_sentencepiece and find_spec("sentencepiece") is None:
        return "tokenizer.model needs the package sentencepiece: pip install sentencepiece"
    return first_line(error)
