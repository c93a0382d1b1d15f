"""Which files of a checkpoint directory hold its weights.

A directory may have several sets of weights, for example old shards beside a model that was saved
anew as one file. Reading another set than transformers would give wrong results without a word. So
the order is transformers': the file that config.json names, then model.safetensors, then the index.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from hybridize.checkpoints.files import CONFIG, INDEX, WEIGHTS, read_json_object
from hybridize.checkpoints.header import TensorLocation, read_header
from hybridize.console import console
from hybridize.errors import InputError

ADAPTER = "adapter_config.json"
NAMED = "transformers_weights"
"""The field of config.json that names the weights."""

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_INDEX_SUFFIX = ".safetensors.index.json"


class CheckpointFiles(Protocol):
    """The files of a checkpoint, in a directory or on the hub."""

    @property
    def place(self) -> Path:
        """The directory, or the name on the hub, for error messages."""

    def names(self) -> Collection[str]:
        """Return the names of the files beside config.json."""

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file."""

    def read_headers(self, names: Sequence[str]) -> Iterator[dict[str, TensorLocation]]:
        """Yield the tensors of each safetensors file."""


class LocalFiles(CheckpointFiles):
    """The files of a checkpoint in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    @override
    def place(self) -> Path:
        return self._directory

    @override
    def names(self) -> Collection[str]:
        try:
            return {path.name for path in self._directory.iterdir() if path.is_file()}
        except OSError as error:
            raise InputError(f"{self._directory}: {error.strerror}") from error

    @override
    def read_json(self, name: str) -> dict[str, Any]:
        return read_json_object(self._directory / name)

    @override
    def read_headers(self, names: Sequence[str]) -> Iterator[dict[str, TensorLocation]]:
        return (read_header(self._directory / name) for name in names)


@dataclass(frozen=True)
class WeightSet:
    """One set of weights.

    Attributes:
        entry: the safetensors file, or the index of several ones.
        weight_map: the file of each tensor, from the index; None without an index.
    """

    entry: str
    weight_map: dict[str, str] | None

    @property
    def files(self) -> list[str]:
        """The names of the safetensors files, sorted."""
        return [self.entry] if self.weight_map is None else sorted(set(self.weight_map.values()))


def choose_weights(files: CheckpointFiles, config: dict[str, Any]) -> WeightSet:
    """Return the set of weights that transformers would read, from the names of the files.

    Prints a note if other safetensors files lie unused beside them.

    Args:
        files: the files of the checkpoint.
        config: its config.json.

    Raises:
        InputError: there are no weights, they are incomplete, pickled or an adapter, or config.json
            or the index is wrong.
    """
    names, entry = files.names(), choose_entry(files, config)
    weight_map = _read_index(files, entry) if entry.endswith(".index.json") else None
    chosen = WeightSet(entry, weight_map)
    for name in chosen.files:
        if name not in names:
            raise InputError(f"{files.place / entry}: the shard {name!r} is missing")
    unused = sorted(
        name
        for name in names
        if name.endswith(".safetensors") and name not in chosen.files and "/" not in name
    )
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        console.note(
            f"{files.place}: the weights are in {chosen.entry}; unused beside it: {unused[0]}{more}"
        )
    return chosen


def _read_index(files: CheckpointFiles, entry: str) -> dict[str, str]:
    index, weight_map = files.place / entry, files.read_json(entry).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise InputError(
                f"{index}: tensor {tensor!r} is in {name!r}; shards must be beside the index"
            )
        if not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name!r} is not a safetensors file")
    return weight_map


def find_tensors(
    files: CheckpointFiles, config: dict[str, Any]
) -> tuple[list[Path], dict[str, TensorLocation]]:
    """Return the files of a checkpoint's weights, and where each tensor is.

    Args:
        files: the files of the checkpoint.
        config: its config.json.

    Raises:
        InputError: see `choose_weights`; or the files contradict each other.
    """
    chosen = choose_weights(files, config)
    if chosen.weight_map is None:
        (locations,) = files.read_headers([chosen.entry])
    else:
        locations = _read_shards(files, chosen.entry, chosen.files, chosen.weight_map)
    return [files.place / name for name in chosen.files], locations


def choose_entry(files: CheckpointFiles, config: dict[str, Any]) -> str:
    """Return the name of the safetensors file or of the index that transformers would read.

    Raises:
        InputError: see `choose_weights`; but the index is not read.
    """
    place, names = files.place, files.names()
    _refuse_adapter(place, names)
    named = config.get(NAMED)
    if named is not None:
        path = place / CONFIG
        if not isinstance(named, str) or named != os.path.basename(named):
            raise InputError(f"{path}: {NAMED} is {named!r}; it must name a file beside it")
        if not named.endswith((".safetensors", _INDEX_SUFFIX)):
            raise InputError(
                f"{path}: {NAMED} is {named!r}; it must name a safetensors file or its index"
            )
        if named not in names:
            raise InputError(f"{path}: {NAMED} names {named!r}, which is missing")
        return named
    for name in (WEIGHTS, INDEX):
        if name in names:
            return name
    beside = sorted(name for name in names if "/" not in name)
    others = [name for name in beside if name.endswith((".safetensors", _INDEX_SUFFIX))]
    if others:
        raise InputError(
            f"{place}: no {WEIGHTS} and no {INDEX}; if the weights are in {others[0]}, name it in "
            f'{CONFIG}: "{NAMED}": "{others[0]}"'
        )
    pickled = [name for name in beside if any(fnmatch(name, pattern) for pattern in _PICKLES)]
    if pickled:
        raise InputError(
            f"{place / pickled[0]}: pickled weights can run code and are never opened; if you "
            "trust them, convert them to safetensors with transformers' save_pretrained"
        )
    raise InputError(f"{place}: no {WEIGHTS} and no {INDEX}")


def _refuse_adapter(place: Path, names: Collection[str]) -> None:
    # With peft, transformers would open the adapter's base model, wherever it is, and add the
    # adapter to it. Without peft, it would open the weights beside it.
    if ADAPTER in names:
        raise InputError(
            f"{place / ADAPTER}: is the configuration of an adapter (LoRA); merge it into its "
            "base model with peft's merge_and_unload, and save that, or remove this file"
        )


def _read_shards(
    files: CheckpointFiles, entry: str, shards: list[str], weight_map: dict[str, str]
) -> dict[str, TensorLocation]:
    index = files.place / entry
    locations: dict[str, TensorLocation] = {}
    for shard, header in zip(shards, files.read_headers(shards), strict=True):
        for tensor, location in header.items():
            if weight_map.get(tensor) != shard:
                where = "another shard" if tensor in weight_map else "no shard"
                raise InputError(
                    f"{files.place / shard}: contains tensor {tensor!r}, which {entry} assigns to "
                    f"{where}"
                )
            locations[tensor] = location
    missing = sorted(set(weight_map) - set(locations))
    if missing:
        raise InputError(
            f"{index}: assigns tensor {missing[0]!r} to {weight_map[missing[0]]!r}, "
            "which does not contain it"
        )
    return locations
