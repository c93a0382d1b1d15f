"""Which files of a checkpoint directory hold its weights.

A directory may have several sets of weights, for example old shards beside a model that was saved
anew as one file. Reading another set than transformers would give wrong results without a word. So
the order is transformers': the file that config.json names, then model.safetensors, then the index.
"""

import os
from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import CONFIG, INDEX, WEIGHTS, read_json_object
from hybridize.checkpoints.header import TensorLocation, read_header
from hybridize.console import console
from hybridize.errors import InputError

ADAPTER = "adapter_config.json"
NAMED = "transformers_weights"
"""The field of config.json that names the weights."""

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def find_tensors(
    directory: Path, config: dict[str, Any]
) -> tuple[list[Path], dict[str, TensorLocation]]:
    """Return the files of a checkpoint's weights, and where each tensor is.

    Prints a note if other safetensors files lie unused beside them.

    Args:
        directory: the checkpoint.
        config: its config.json.

    Raises:
        InputError: there are no weights, they are pickled or an adapter, or their files contradict
            each other.
    """
    _refuse_adapter(directory)
    path = _weights_or_index(directory, config)
    if path.name.endswith(".index.json"):
        weight_map = read_json_object(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{path}: has no weight_map")
        files, locations = _read_shards(directory, path, weight_map)
    else:
        files, locations = [path], read_header(path)
    unused = sorted(p.name for p in directory.glob("*.safetensors") if p not in files)
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        console.note(
            f"{directory}: the weights are in {path.name}; unused beside it: {unused[0]}{more}"
        )
    return files, locations


def _weights_or_index(directory: Path, config: dict[str, Any]) -> Path:
    named = config.get(NAMED)
    if named is not None:
        path = directory / CONFIG
        if not isinstance(named, str) or named != os.path.basename(named):
            raise InputError(f"{path}: {NAMED} is {named!r}; it must name a file beside it")
        if not named.endswith((".safetensors", ".safetensors.index.json")):
            raise InputError(
                f"{path}: {NAMED} is {named!r}; it must name a safetensors file or its index"
            )
        if not os.path.exists(directory / named):
            raise InputError(f"{path}: {NAMED} names {named!r}, which is missing")
        return directory / named
    for name in (WEIGHTS, INDEX):
        if (directory / name).is_file():
            return directory / name
    pickled = next((p for pattern in _PICKLES for p in sorted(directory.glob(pattern))), None)
    if pickled is not None:
        raise InputError(
            f"{pickled}: pickled weights can run code and are never opened; if you trust "
            "them, convert them to safetensors with transformers' save_pretrained"
        )
    raise InputError(f"{directory}: no {WEIGHTS} and no {INDEX}")


def _refuse_adapter(directory: Path) -> None:
    # With peft, transformers would open the adapter's base model, wherever it is, and add the
    # adapter to it. Without peft, it would open the weights beside it.
    if (directory / ADAPTER).is_file():
        raise InputError(
            f"{directory / ADAPTER}: is the configuration of an adapter (LoRA); merge it into its "
            "base model with peft's merge_and_unload, and save that, or remove this file"
        )


def _read_shards(
    directory: Path, index: Path, weight_map: dict[str, Any]
) -> tuple[list[Path], dict[str, TensorLocation]]:
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise InputError(
                f"{index}: tensor {tensor!r} is in {name!r}; shards must be beside the index"
            )
        if not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name!r} is not a safetensors file")
    files = [directory / name for name in sorted(set(weight_map.values()))]
    locations: dict[str, TensorLocation] = {}
    for file in files:
        if not os.path.exists(file):  # also False for names that no file can have
            raise InputError(f"{index}: the shard {file.name!r} is missing")
        for tensor, location in read_header(file).items():
            if weight_map.get(tensor) != file.name:
                where = "another shard" if tensor in weight_map else "no shard"
                raise InputError(
                    f"{file}: contains tensor {tensor!r}, which {index.name} assigns to {where}"
                )
            locations[tensor] = location
    missing = sorted(set(weight_map) - set(locations))
    if missing:
        raise InputError(
            f"{index}: assigns tensor {missing[0]!r} to {weight_map[missing[0]]!r}, "
            "which does not contain it"
        )
    return files, locations
