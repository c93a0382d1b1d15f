"""Sources of a model's tensors, under hybridize's own parameter names.

Sources are stacked: a checkpoint on disk, then a conversion of it, then an adaptation to a format.
Each returns one tensor at a time, so that a whole model is never in memory. Torch is imported when
the first tensor is read.
"""

from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from hybridize.checkpoints.dtypes import torch_dtype
from hybridize.checkpoints.extra_tensors import left_out, note_left_out, problem
from hybridize.checkpoints.files import CONFIG
from hybridize.checkpoints.formats.base import Entry, Format
from hybridize.checkpoints.formats.tensor_names import describe_missing
from hybridize.checkpoints.quantization import FP8, Quantization, read_quantization, split_scale
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import AttentionSizes
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes

if TYPE_CHECKING:
    import torch

    from hybridize.modeling.config import HybridConfig

_WEIGHT_DTYPES = ("float64", "float32", "bfloat16", "float16")
"""The dtypes of weights without scales."""


class Tensors(Protocol):
    """Returns a model's tensors one by one."""

    def get(self, name: str) -> "torch.Tensor":
        """Return the tensor that `parameter_shapes` lists under ``name``."""

    def dtype(self, name: str) -> str:
        """Return torch's name of the tensor's dtype, without reading the tensor."""


class CheckpointTensors(Tensors):
    """A checkpoint's tensors under the model's names.

    Args:
        reader: the checkpoint.
        format_: its format.
        config: the model, from `read_config`.

    Raises:
        InputError: a tensor is missing, is not part of the model, or has another shape than
            config.json implies.
    """

    def __init__(self, reader: CheckpointReader, format_: Format, config: ModelSpec) -> None:
        self.reader, self._spec = reader, config
        self._checked: HybridConfig | None = None
        self._last: tuple[str, torch.Tensor] | None = None
        self.quantization = _quantization(reader)
        self._entries: dict[str, tuple[Entry, int]] = {}
        for entry in format_.tensor_map(config):
            self._entries |= {name: (entry, part) for part, name in enumerate(entry.parameters)}
        problems = mismatches(reader, format_, config)
        if problems:
            raise InputError(f"{reader.directory}: {problems[0]}")

    def check_config(self) -> "HybridConfig":
        """Check config.json with transformers; return the configuration of a model in memory.

        `get` calls this before it reads the first tensor. It imports transformers.

        Raises:
            InputError: transformers does not accept config.json.
        """
        if self._checked is None:
            from hybridize.checkpoints.config_check import checked_config

            path = self.reader.directory / CONFIG
            self._checked = checked_config(self._spec, self.reader.config, path)
        return self._checked

    @override
    def get(self, name: str) -> "torch.Tensor":
        self.check_config()
        entry, part = self._entries[name]
        # The parts of one tensor on disk are requested one after the other.
        if self._last is None or self._last[0] != entry.disk:
            self._last = None
            self._last = (entry.disk, self.reader.get(entry.disk))
        tensor = self._last[1]
        if len(entry.parameters) == 1:
            self._last = None
            return tensor
        return tensor.split(entry.rows)[part]

    def rows(self, name: str, rows: slice) -> "torch.Tensor":
        """Read some rows of a tensor, and no other bytes.

        Args:
            name: as in `get`.
            rows: a range of the first dimension, with a start and a stop.
        """
        self.check_config()
        entry, part = self._entries[name]
        first = sum(entry.rows[:part]) if len(entry.parameters) > 1 else 0
        return self.reader.get(entry.disk, slice(first + rows.start, first + rows.stop))

    @override
    def dtype(self, name: str) -> str:
        return self.reader.dtype(self._entries[name][0].disk)

    def scales(self, name: str) -> "tuple[torch.Tensor, torch.Tensor | None]":
        """Return the scale of an FP8 weight, and the static scale of its inputs, if it has one.

        Raises:
            InputError: the weight is a part of a stacked tensor, and a block of the scale belongs
                to two parts.
        """
        entry, part = self._entries[name]
        stem = entry.disk.removesuffix("weight")
        try:
            scale = split_scale(self.reader.get(stem + "weight_scale"), entry.rows)[part]
        except ValueError as error:
            raise InputError(
                f"{self.reader.directory}: tensor {entry.disk!r}: {error}; "
                "transformers can run the checkpoint, hybridize cannot"
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
        raise InputError(f"{reader.directory / CONFIG}: {error}") from error


def _scale_shapes(
    reader: CheckpointReader, entries: dict[str, Entry], quantization: Quantization | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the scales that belong to FP8 weights, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in entries.items():
        if quantization is not None and name in reader.names and reader.dtype(name) == FP8:
            stem = name.removesuffix("weight")
            if len(entry.shape) == 2:
                shapes[stem + "weight_scale"] = quantization.scale_shape(entry.shape)
            if quantization.static:
                shapes[stem + "input_scale"] = (1,)
    return shapes


def mismatches(reader: CheckpointReader, format_: Format, config: ModelSpec) -> list[str]:
    """Return how a checkpoint's tensors contradict its config.json, one line for each problem.

    Raises:
        InputError: the checkpoint is quantized in a way that is not supported.
    """
    entries = {entry.disk: entry for entry in format_.tensor_map(config)}
    present = set(reader.names)
    scales = _scale_shapes(reader, entries, _quantization(reader))
    shapes = {name: entry.shape for name, entry in entries.items()} | scales
    scaled = {name.removesuffix("_scale") for name in scales if name.endswith("weight_scale")}
    missing = [name for name in shapes if name not in present]
    found = describe_missing(missing, reader.names, format_.names)
    found += [
        f"tensor {name!r} has shape {list(reader.shape(name))}; config.json implies {list(shape)}"
        for name, shape in shapes.items()
        if name in present and reader.shape(name) != shape
    ]
    found += [
        f"tensor {name!r} has dtype {reader.dtype(name)}; weights are {' or '.join(_WEIGHT_DTYPES)}"
        for name in shapes
        if name in present and name not in scaled and reader.dtype(name) not in _WEIGHT_DTYPES
    ]
    head, embedding = f"{format_.names.head}.weight", f"{format_.names.embedding}.weight"
    beside = []
    for name in sorted(present - set(shapes)):
        kind = left_out(name, reader.shape(name))
        if kind:
            beside.append((name, kind))
            continue
        if name == head and config.tie_word_embeddings:
            # Some checkpoints store the tied head a second time; both must be equal.
            if not found and not _equal(reader, head, embedding):
                found.append(
                    f"tensor {head!r} differs from {embedding!r}, but config.json says "
                    "tie_word_embeddings; set it to false to keep both"
                )
            continue
        found.append(problem(name, format_.name))
    if not found:
        note_left_out(reader.directory, beside)
    return found


def _equal(reader: CheckpointReader, first: str, second: str) -> bool:
    import torch

    return torch.equal(reader.get(first), reader.get(second))


class AdaptedTensors(Tensors):
    """The tensors of a model to which `Format.fit` has added zero biases and zero heads.

    Args:
        source: the model's tensors.
        before: the model.
        after: the adapted model.
    """

    def __init__(self, source: Tensors, before: ModelSpec, after: ModelSpec) -> None:
        self._source = source
        self._before, self._after = before.blocks, after.blocks
        self._have, self._want = parameter_shapes(before), parameter_shapes(after)

    @override
    def get(self, name: str) -> "torch.Tensor":
        if name not in self._have:
            import torch

            return torch.zeros(self._want[name], dtype=torch_dtype(self.dtype(name)))
        tensor = self._source.get(name)
        if self._have[name] == self._want[name]:
            return tensor
        from hybridize.checkpoints.padding import pad_projection

        index = int(name.split(".")[2])
        before, after = self._before[index], self._after[index]
        assert isinstance(before, AttentionSizes)
        assert isinstance(after, AttentionSizes)
        return pad_projection(name.rsplit(".", 2)[1], tensor, before, after)

    @override
    def dtype(self, name: str) -> str:
        # A new bias has the dtype of the weight beside it.
        present = name if name in self._have else name.removesuffix("bias") + "weight"
        return self._source.dtype(present)
