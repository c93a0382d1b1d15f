"""The tensors of a quantized checkpoint, computed one at a time from the source's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from hybridize.checkpoints import CheckpointReader, TensorSpec
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.formats import Entry
from hybridize.checkpoints.quantization import FP8
from hybridize.checkpoints.streaming_writer import PlannedCheckpoint
from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.quantize.plan import QuantizationPlan
from hybridize.errors import InputError

if TYPE_CHECKING:
    import torch


class QuantizedTensors(Tensors):
    """The tensors of a quantized checkpoint, by their names on disk.

    A quantized weight ``X.weight`` is followed by ``X.weight_scale`` and, if the scheme is static,
    by ``X.input_scale``. They are computed together, so `get` must be called in this order.

    Args:
        reader: the source.
        plan: what will be quantized.
    """

    def __init__(self, reader: CheckpointReader, plan: QuantizationPlan) -> None:
        self._reader, self._plan = reader, plan
        self._specs = {spec.name: spec for entry in plan.entries for spec in self._specs_of(entry)}
        self._scales: dict[str, torch.Tensor] = {}  # of the weight that `get` returned last

    def planned_checkpoint(self) -> PlannedCheckpoint:
        """Return what `streaming_writer.write_checkpoint` takes."""
        specs = tuple(self._specs.values())
        entries = tuple(Entry(s.name, (s.name,), s.shape[:1], s.shape) for s in specs)
        return PlannedCheckpoint(self._plan.format, self._plan.config, entries, specs, self)

    @override
    def get(self, name: str) -> torch.Tensor:
        if name in self._scales:
            return self._scales.pop(name)
        tensor = self._reader.get(name)
        if not is_finite(tensor):
            raise InputError(
                f"{self._reader.directory}: tensor {name!r} contains NaN or infinity, which has "
                "no FP8 scale; repair the checkpoint first"
            )
        if name not in self._plan.quantized:
            return tensor
        scheme, stem = self._plan.scheme, name.removesuffix("weight")
        values, scale = scheme.quantize(tensor)
        self._scales = {stem + "weight_scale": scale}
        if scheme.quantization.static:
            parts = self._plan.quantized[name].entry.parameters
            maxima = [self._plan.measured.input_maxima[part] for part in parts]
            self._scales[stem + "input_scale"] = scheme.input_scale(max(maxima))
        return values

    @override
    def dtype(self, name: str) -> str:
        return self._specs[name].dtype

    def _specs_of(self, entry: Entry) -> list[TensorSpec]:
        """Return the specs of the tensors that one of the source's tensors becomes."""
        if entry.disk not in self._plan.quantized:
            return [TensorSpec(entry.disk, entry.shape, self._reader.dtype(entry.disk))]
        quantization = self._plan.scheme.quantization
        stem = entry.disk.removesuffix("weight")
        scale_shape = quantization.scale_shape(entry.shape)
        specs = [
            TensorSpec(entry.disk, entry.shape, FP8),
            TensorSpec(stem + "weight_scale", scale_shape, "float32"),
        ]
        if quantization.static:
            specs.append(TensorSpec(stem + "input_scale", (1,), "float32"))
        return specs
