"""A model's tensors by the model's own names, whatever they are read from.

Readers of tensors are stacked: a checkpoint on disk, the same adapted to another format, a
conversion in between. Each hands out one tensor at a time, so none holds a model in memory.
"""

import fnmatch
from typing import Protocol

import torch
import torch.nn.functional as F

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats.base import Entry, Format
from hybridize.checkpoints.quantization import (
    FP8,
    Quantization,
    read_quantization,
    split_scale,
)
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.layers.sizes import AttentionSizes

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What weights come in that have no scales."""


class Tensors(Protocol):
    """Hands out a model's tensors one by one."""

    def get(self, name: str) -> torch.Tensor:
        """Return the tensor that `parameter_shapes` lists under ``name``."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `get` would, without reading anything."""


class CheckpointTensors:
    """A checkpoint's tensors under the model's names.

    Args:
        reader: the checkpoint.
        format_: its format.
        config: its configuration, as `read_config` returned it.

    Raises:
        InputError: a tensor is missing, left over, or of another shape than the
            configuration says.
    """

    def __init__(self, reader: CheckpointReader, format_: Format, config: HybridConfig) -> None:
        self.reader = reader
        self._places: dict[str, tuple[Entry, int]] = {}
        self._last: tuple[str, torch.Tensor] | None = None
        self.quantization = _quantization(reader)
        entries = format_.tensor_map(config)
        for entry in entries:
            self._places |= {ours: (entry, part) for part, ours in enumerate(entry.ours)}
        problems = misfits(reader, format_, config)
        if problems:
            raise InputError(f"{reader.directory}: {problems[0]}")

    def get(self, name: str) -> torch.Tensor:
        """See `Tensors.get`."""
        entry, part = self._places[name]
        # Parts of one tensor on disk are asked for one after the other.
        if self._last is None or self._last[0] != entry.disk:
            self._last = None
            self._last = (entry.disk, self.reader.get(entry.disk))
        tensor = self._last[1]
        if len(entry.ours) == 1:
            self._last = None
            return tensor
        return tensor.split(entry.rows)[part]

    def dtype(self, name: str) -> torch.dtype:
        """See `Tensors.dtype`."""
        return self.reader.dtype(self._places[name][0].disk)

    def scales(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scales of a weight in FP8, and of the inputs that it is multiplied with.

        Raises:
            InputError: the weight is a part of a tensor on disk whose blocks lie across its border.
        """
        entry, part = self._places[name]
        stem = entry.disk.removesuffix("weight")
        try:
            scale = split_scale(self.reader.get(stem + "weight_scale"), entry.rows)[part]
        except ValueError as error:
            raise InputError(
                f"{self.reader.directory}: tensor {entry.disk!r}: {error}; "
                "transformers can run it, hybridize cannot"
            ) from error
        inputs = self.reader.get(stem + "input_scale") if self._static else None
        return scale, inputs

    @property
    def _static(self) -> bool:
        return self.quantization is not None and self.quantization.static


def _quantization(reader: CheckpointReader) -> Quantization | None:
    try:
        return read_quantization(reader.config)
    except ValueError as error:
        raise InputError(f"{reader.directory / 'config.json'}: {error}") from error


def _scale_shapes(
    reader: CheckpointReader, entries: dict[str, Entry], quantization: Quantization | None
) -> dict[str, tuple[int, ...]]:
    """Return what lies beside the weights in FP8: names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in entries.items():
        if quantization is not None and name in reader.names and reader.dtype(name) == FP8:
            stem = name.removesuffix("weight")
            if len(entry.shape) == 2:
                shapes[stem + "weight_scale"] = quantization.scale_shape(entry.shape)
            if quantization.static:
                shapes[stem + "input_scale"] = (1,)
    return shapes


def misfits(reader: CheckpointReader, format_: Format, config: HybridConfig) -> list[str]:
    """Return what is wrong between a checkpoint's tensors and its config.json, a line each.

    Raises:
        InputError: the checkpoint is quantized in a way that is not known.
    """
    entries = {entry.disk: entry for entry in format_.tensor_map(config)}
    present = set(reader.names)
    scales = _scale_shapes(reader, entries, _quantization(reader))
    shapes = {name: entry.shape for name, entry in entries.items()} | scales
    scaled = {name.removesuffix("_scale") for name in scales if name.endswith("weight_scale")}
    found = [
        f"tensor {name!r} is missing, which config.json implies"
        for name in shapes
        if name not in present
    ]
    found += [
        f"tensor {name!r} has shape {list(reader.shape(name))}; config.json implies {list(shape)}"
        for name, shape in shapes.items()
        if name in present and reader.shape(name) != shape
    ]
    found += [
        f"tensor {name!r} has dtype {str(reader.dtype(name)).removeprefix('torch.')}; "
        f"weights are {' or '.join(dtype.removeprefix('torch.') for dtype in map(str, _DTYPES))}"
        for name in shapes
        if name in present and name not in scaled and reader.dtype(name) not in _DTYPES
    ]
    head, embedding = f"{format_.names.head}.weight", f"{format_.names.embedding}.weight"
    for name in sorted(present - set(shapes)):
        if any(fnmatch.fnmatch(name, pattern) for pattern in format_.ignored):
            continue
        if name == head and config.tie_word_embeddings:
            # Some checkpoints store the tied head a second time; it must be the same.
            if not found and not torch.equal(reader.get(head), reader.get(embedding)):
                found.append(
                    f"tensor {head!r} differs from {embedding!r}, but config.json says "
                    "tie_word_embeddings; set it to false to keep both"
                )
            continue
        found.append(
            f"tensor {name!r} has no place in a {format_.name} model with this config.json"
        )
    return found


class AdaptedTensors:
    """Tensors of a model that a format's `fit` has widened: zero biases and zero heads.

    Args:
        source: the model's tensors.
        before: its configuration.
        after: the configuration that `Format.fit` made of it.
    """

    def __init__(self, source: Tensors, before: HybridConfig, after: HybridConfig) -> None:
        self._source = source
        self._before, self._after = before.blocks, after.blocks
        self._have, self._want = parameter_shapes(before), parameter_shapes(after)

    def get(self, name: str) -> torch.Tensor:
        """See `Tensors.get`."""
        if name not in self._have:
            return torch.zeros(self._want[name], dtype=self.dtype(name))
        tensor = self._source.get(name)
        if self._have[name] == self._want[name]:
            return tensor
        index = int(name.split(".")[2])
        before, after = self._before[index], self._after[index]
        assert isinstance(before, AttentionSizes)
        assert isinstance(after, AttentionSizes)
        return pad_projection(name.rsplit(".", 2)[1], tensor, before, after)

    def dtype(self, name: str) -> torch.dtype:
        """See `Tensors.dtype`."""
        # An added bias takes after the weight beside it.
        present = name if name in self._have else name.removesuffix("bias") + "weight"
        return self._source.dtype(present)


def pad_projection(
    module: str, tensor: torch.Tensor, before: AttentionSizes, after: AttentionSizes
) -> torch.Tensor:
    """Add zero heads to every KV group, and zero groups, to one projection's weight or bias.

    Args:
        module: ``q_proj``, ``k_proj``, ``v_proj`` or ``o_proj``.
        tensor: its weight or, but for ``o_proj``, its bias.
        before, after: the sizes that it has and that it gets; see `stock_hybrid.pad_heads`.
    """
    if before.num_heads == after.num_heads or (module == "o_proj" and tensor.ndim == 1):
        return tensor
    more_groups = after.num_kv_heads - before.num_kv_heads
    group, new_group = (
        before.num_heads // before.num_kv_heads,
        after.num_heads // after.num_kv_heads,
    )
    dim = before.head_dim
    if module == "o_proj":  # (hidden, heads × head_dim)
        split = tensor.unflatten(1, (before.num_kv_heads, group, dim))
        return F.pad(split, (0, 0, 0, new_group - group, 0, more_groups)).flatten(1)
    flat = tensor if tensor.ndim == 2 else tensor[:, None]  # (heads × head_dim, hidden or 1)
    if module == "q_proj":
        split = flat.unflatten(0, (before.num_kv_heads, group, dim))
        padded = F.pad(split, (0, 0, 0, 0, 0, new_group - group, 0, more_groups)).flatten(0, 2)
    else:
        split = flat.unflatten(0, (before.num_kv_heads, dim))
        padded = F.pad(split, (0, 0, 0, 0, 0, more_groups)).flatten(0, 1)
    return padded if tensor.ndim == 2 else padded[:, 0]
