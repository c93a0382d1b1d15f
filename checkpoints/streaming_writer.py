"""From a model's tensors, handed out one by one, to a checkpoint, without a model in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from hybridize.checkpoints import CheckpointReader, CheckpointWriter, TensorSpec
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.formats import Entry, Fit, Format
from hybridize.checkpoints.tensors import AdaptedTensors, Tensors
from hybridize.console import console
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Outgoing:
    """A model as it is going to be on disk.

    Attributes:
        format: the on-disk architecture.
        config: the model as that holds it.
        entries: its tensors, and what each is stacked from.
        specs: the same, as the writer wants them.
        tensors: where they come from.
    """

    format: Format
    config: HybridConfig
    entries: tuple[Entry, ...]
    specs: tuple[TensorSpec, ...]
    tensors: Tensors

    @property
    def nbytes(self) -> int:
        """Return the size of all weights."""
        return sum(spec.nbytes for spec in self.specs)


def outgoing(
    tensors: Tensors, config: HybridConfig, format_: Format, fit: Fit, dtype: torch.dtype | None
) -> Outgoing:
    """Lay a model out for a format.

    Args:
        tensors: the model's.
        config: its configuration.
        format_: what will be written.
        fit: the model as that format holds it.
        dtype: of all weights; each one's own if None.
    """
    adapted = AdaptedTensors(tensors, config, fit.config)
    entries = tuple(format_.tensor_map(fit.config))
    specs = tuple(TensorSpec(e.disk, e.shape, dtype or adapted.dtype(e.ours[0])) for e in entries)
    return Outgoing(format_, fit.config, entries, specs, adapted)


def write(
    model: Outgoing,
    output: Path,
    *,
    reader: CheckpointReader,
    source_format: Format,
    step: Callable[[int], dict[str, Any]],
    label: str,
    force: bool,
    max_shard_size: int,
    extra_files: Mapping[str, str | bytes],
) -> None:
    """Write a checkpoint, tensor by tensor.

    Args:
        model: what to write.
        output: the directory.
        reader: the checkpoint that it was made of, whose tokenizer and history go along.
        source_format: its format.
        step: given the number of weight files, when all are written: the provenance of the step.
        label: what the progress bar says.
        force: replace an existing output.
        max_shard_size: bytes per safetensors file.
        extra_files: further files, by name.

    Raises:
        InputError: the output cannot be written.
        HybridizeError: writing failed; the output is as it was before.
    """
    raw = model.format.from_hybrid(model.config)
    if model.format is source_format:
        raw = {**reader.config, **raw}  # what we do not understand, we do not lose
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
        writer.finish(step(len(writer.files)))


def source_name(model: str | Path) -> str:
    """Name a source without the path of this machine: a hub id, or the directory's own name."""
    return Path(model).resolve().name if Path(model).exists() else str(model)


def _parts(
    entry: Entry, spec: TensorSpec, tensors: Tensors, allow_nonfinite: bool
) -> list[torch.Tensor]:
    """Return what one tensor on disk is stacked from."""
    parts = []
    for name in entry.ours:
        tensor = tensors.get(name)
        part = tensor.to(spec.dtype)
        if part is not tensor and not allow_nonfinite and not is_finite(part):
            raise InputError(
                f"tensor {spec.name!r} is too large for {str(spec.dtype).removeprefix('torch.')}; "
                "choose another --dtype"
            )
        parts.append(part)
    return parts


def _one_ahead(items: Iterable[_Item], work: Callable[[_Item], _Result]) -> Iterator[_Result]:
    """Yield ``work`` of each item, doing the next in a thread while one is looked at.

    Reading then overlaps with writing, at the cost of one more result in memory.
    """
    with ThreadPoolExecutor(1, "read") as pool:
        coming: Future[_Result] | None = None
        for item in items:
            ready, coming = coming, pool.submit(work, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
