"""Writing a checkpoint from a stream of tensors, without a whole model in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hybridize.checkpoints.dtypes import torch_dtype
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.formats import Entry, Fit, Format
from hybridize.checkpoints.header import TensorSpec
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.checkpoints.tensors import AdaptedTensors, Tensors
from hybridize.checkpoints.writer import CheckpointWriter
from hybridize.console import console
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PlannedCheckpoint:
    """A checkpoint that will be written. No tensor has been read yet.

    Attributes:
        format: the on-disk architecture.
        config: the model, adapted to the format.
        entries: its tensors on disk, and the parameters that each is made of.
        specs: name, shape and dtype of the same tensors, for the writer.
        tensors: the source of the parameters.
    """

    format: Format
    config: ModelSpec
    entries: tuple[Entry, ...]
    specs: tuple[TensorSpec, ...]
    tensors: Tensors

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        return sum(spec.nbytes for spec in self.specs)


def plan_checkpoint(
    tensors: Tensors, config: ModelSpec, format_: Format, fit: Fit, dtype: str | None
) -> PlannedCheckpoint:
    """Plan how a model is stored: names, shapes and dtypes of the tensors on disk.

    Args:
        tensors: the model's tensors.
        config: the model.
        format_: the format that will be written.
        fit: the model, adapted to the format.
        dtype: torch's name of the dtype of all weights; None keeps the dtype of each.
    """
    adapted = AdaptedTensors(tensors, config, fit.spec)
    entries = tuple(format_.tensor_map(fit.spec))
    specs = tuple(
        TensorSpec(entry.disk, entry.shape, dtype or adapted.dtype(entry.parameters[0]))
        for entry in entries
    )
    written = replace(fit.spec, dtype=dtype or fit.spec.dtype)
    return PlannedCheckpoint(format_, written, entries, specs, adapted)


def write_checkpoint(
    model: PlannedCheckpoint,
    output: Path,
    *,
    reader: CheckpointReader,
    source_format: Format,
    record: Callable[[int], dict[str, Any]],
    label: str,
    force: bool,
    max_shard_size: int,
    extra_files: Mapping[str, str | bytes],
    config_json: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint tensor by tensor.

    Args:
        model: the planned checkpoint.
        output: the directory.
        reader: the source checkpoint; its tokenizer files are copied and its provenance continued.
        source_format: the format of the source.
        record: returns the provenance record of the command. It is called when all weight files
            are written, with their number.
        label: the label of the progress bar.
        force: replace an existing output.
        max_shard_size: bytes per safetensors file.
        extra_files: further files, by name.
        config_json: what is new in config.json; None lets the format describe the model.
        check: is called with the working directory when everything except the provenance is
            written, before ``record``. If it raises, nothing is left.

    Raises:
        InputError: the output cannot be written.
        HybridizeError: writing failed; an existing output was not changed.
    """
    if config_json is not None:
        raw = {**reader.config, **config_json}
    else:
        raw = model.format.to_raw(model.config)
        if model.format is source_format:
            raw = source_format.unread(reader.config) | raw
    with CheckpointWriter(
        output,
        list(model.specs),
        config=raw,
        max_shard_size=max_shard_size,
        force=force,
        source=reader.directory,
        extra_files={**model.format.extra_files(model.config), **extra_files},
    ) as writer:
        with console.progress(label, model.nbytes, "bytes") as progress:
            jobs = zip(model.entries, model.specs, strict=True)
            for spec, parts in _one_ahead(
                jobs, lambda job: (job[1], _parts(*job, model.tensors, reader.allow_nonfinite))
            ):
                writer.add(spec.name, *parts)
                progress.advance(spec.nbytes)
        if check is not None:
            check(writer.complete())
        writer.finish(record(len(writer.files)))


def _parts(
    entry: Entry, spec: TensorSpec, tensors: Tensors, allow_nonfinite: bool
) -> "list[torch.Tensor]":
    """Return the parameters that one tensor on disk is stacked from, in its dtype."""
    parts = []
    for name in entry.parameters:
        tensor = tensors.get(name)
        part = tensor.to(torch_dtype(spec.dtype))
        if part is not tensor and not allow_nonfinite and not is_finite(part):
            raise InputError(
                f"tensor {spec.name!r} has numbers too large for {spec.dtype}; choose another "
                "`dtype`"
            )
        parts.append(part)
    return parts


def _one_ahead(items: Iterable[_Item], work: Callable[[_Item], _Result]) -> Iterator[_Result]:
    """Yield ``work`` of each item, while a thread works on the next item.

    So reading overlaps with writing. Two results are in memory at a time.
    """
    with ThreadPoolExecutor(1, "read") as pool:
        coming: Future[_Result] | None = None
        for item in items:
            ready, coming = coming, pool.submit(work, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
