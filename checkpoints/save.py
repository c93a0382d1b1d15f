"""Writing a model in memory as a checkpoint in the format of an existing checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader, CheckpointWriter, TensorSpec
from hybridize.checkpoints.dtypes import torch_dtype
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.provenance import describe_source
from hybridize.console import console


def stored_parameters(directory: Path) -> list[str]:
    """Return the names of a checkpoint's parameters, in the order in which they are stored."""
    with CheckpointReader(directory) as reader:
        format_, config = read_config(reader)
        return [name for entry in format_.tensor_map(config) for name in entry.parameters]


def save_model(
    parameters: Mapping[str, torch.Tensor],
    output: Path,
    *,
    like: Path,
    record: dict[str, Any],
    force: bool = False,
    max_shard_size: int = 5_000_000_000,
    extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a model with the format, the dtypes and the other files of a checkpoint.

    Args:
        parameters: the model's parameters by name, looked up one by one in the order of
            `stored_parameters`; the model's configuration is that of ``like``.
        output: the directory to write.
        like: the directory of the checkpoint; its tokenizer files are copied and its provenance
            is continued.
        record: the provenance record of this command, without its source.
        force: replace an existing output.
        max_shard_size: bytes per safetensors file.
        extra_files: further files, by name.

    Raises:
        InputError: the output cannot be written.
        HybridizeError: writing failed; an existing output was not changed.
    """
    with CheckpointReader(like) as reader:
        reader.hash_in_background()
        format_, config = read_config(reader)
        entries = format_.tensor_map(config)
        specs = [TensorSpec(e.disk, e.shape, reader.dtype(e.disk)) for e in entries]
        raw = format_.unread(reader.config) | format_.to_raw(config)
        extra = {**format_.extra_files(config), **(extra_files or {})}
        with (
            CheckpointWriter(
                output,
                specs,
                config=raw,
                max_shard_size=max_shard_size,
                force=force,
                source=like,
                extra_files=extra,
            ) as writer,
            console.progress("writing", sum(spec.nbytes for spec in specs), "bytes") as progress,
        ):
            for entry, spec in zip(entries, specs, strict=True):
                dtype = torch_dtype(spec.dtype)
                parts = (parameters[name].detach().to("cpu", dtype) for name in entry.parameters)
                writer.add(spec.name, *parts)
                progress.advance(spec.nbytes)
            writer.finish({**record, "source": describe_source(like, reader.sha256())})
