"""`hybridize quantize`: a checkpoint's linear layers in FP8, one tensor at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hybridize.checkpoints import (
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    check_output,
)
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.formats import Entry, read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.quantization import FP8
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.compress.quantize.calibrate import input_maxima
from hybridize.compress.quantize.keep import choose_ends, choose_sensitive, parse_keep
from hybridize.compress.quantize.results import QuantizeResult
from hybridize.compress.quantize.schemes import Scheme, find_scheme
from hybridize.compress.quantize.sensitivity import measure_blocks
from hybridize.compress.quantize.targets import Target, find_targets, ignore_patterns
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.data.source import TEACHER, load_packed_dataset
from hybridize.errors import InputError
from hybridize.extras import require_extra
from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.devices import choose_device

_WINDOW = 512  # tokens of calibration text in a row


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    scheme: str = "fp8",
    keep_bf16: int | str | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int = 8192,
    max_shard_size: int = 5_000_000_000,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    dry_run: bool = False,
) -> QuantizeResult:
    """Hold a checkpoint's linear layers in FP8, in the compressed-tensors format.

    Streams: memory holds one tensor at a time, and one block where activations are calibrated.
    ``auto`` and text from the model itself need the whole model in memory.

    Args:
        model: a directory or a hub id, in any format that hybridize reads.
        output: the directory to write, in the same format.
        scheme: ``fp8``, ``fp8-tensor`` or ``fp8-block``; see `hybridize.compress.quantize.schemes`.
        keep_bf16: how many blocks stay at either end (4 if None, fewer for shallow models), or
            ``auto:N`` or ``auto:PERCENT%``: how many stay wherever quantizing costs the most.
        calibration: text for the static scales of ``fp8-tensor`` and for ``auto``: a file, a
            dataset, or ``teacher`` (the default where it is needed): the model writes it.
        calibration_tokens: how much of it, in tokens.
        max_shard_size: bytes per safetensors file.
        seed: of the text that the model writes.
        device: where calibration and measuring compute.
        force: replace an existing output.
        dry_run: plan only; nothing is written.

    Returns:
        What was done, with the figures that the command shows.

    Raises:
        InputError: an option or the source is wrong; nothing was written.
        HybridizeError: writing failed; the output is as it was before.
    """
    chosen = find_scheme(scheme)
    require_extra("quantize", "compressed_tensors", "quantization")
    source, output = resolve(model), Path(output)
    # Weights are looked at here, where the message can say what to do.
    with CheckpointReader(source, allow_nonfinite=True) as reader:
        format_, config = read_config(reader)
        tensors = CheckpointTensors(reader, format_, config)
        targets = find_targets(format_, config, chosen)
        blocks = sorted({target.block for target in targets if not target.obstacle})
        if not blocks:
            reason = next((t.obstacle for t in targets if t.obstacle), "the model has no blocks")
            raise InputError(f"--scheme {scheme}: holds no layer of {source}: {reason}")
        keep = parse_keep(keep_bf16, blocks)
        place = choose_device(device)
        maxima: dict[str, torch.Tensor] = {}
        costs: dict[int, float] = {}
        if chosen.quantization.static or keep.budget is not None:
            dataset = _load_dataset(source, config, calibration, calibration_tokens, seed, place)
            if chosen.quantization.static:
                maxima = input_maxima(tensors, config, dataset, place)
            if keep.budget is not None:
                costs = measure_blocks(source, chosen, targets, maxima, dataset, place)
        elif calibration is not None:
            raise InputError(
                f"--calibration: --scheme {scheme} takes its scales from each input; "
                "leave it out, or add --keep-bf16 auto:BUDGET"
            )
        if keep.budget is None:
            kept = choose_ends(keep, blocks, config.layout)
        else:
            kept = choose_sensitive(keep, costs, config.layout)
        stay = {block.block for block in kept}
        chosen_targets = {
            t.entry.disk: t for t in targets if not t.obstacle and t.block not in stay
        }
        entries = format_.tensor_map(config)
        specs = [spec for e in entries for spec in _specs(e, reader, chosen, chosen_targets)]
        ignored = ignore_patterns(targets, stay)
        result = QuantizeResult(
            source=source,
            output=output,
            format=format_.name,
            scheme=scheme,
            layout=config.layout,
            kept=kept,
            skipped={
                t.entry.disk: t.obstacle for t in targets if t.obstacle and t.block not in stay
            },
            sensitivity=costs,
            parameters=sum(map(math.prod, parameter_shapes(config).values())),
            quantized=sum(math.prod(t.entry.shape) for t in chosen_targets.values()),
            bytes_before=sum(reader.nbytes(entry.disk) for entry in entries),
            bytes_after=sum(spec.nbytes for spec in specs),
            ignored=tuple(ignored),
            files=0,
            dry_run=dry_run,
        )
        if dry_run:
            return result
        check_output(output, source, force=force)
        reader.hash_in_background()
        with CheckpointWriter(
            output,
            specs,
            config={**reader.config, "quantization_config": chosen.config(ignored)},
            max_shard_size=max_shard_size,
            force=force,
            source=source,
            extra_files=format_.extra_files(config),
        ) as writer:
            _write(writer, entries, reader, chosen, chosen_targets, maxima)
            result = replace(result, files=len(writer.files))
            writer.finish(
                {
                    "command": "quantize",
                    "options": {
                        "scheme": scheme,
                        "keep_bf16": None if keep_bf16 is None else str(keep_bf16),
                        "calibration": None if calibration is None else Path(calibration).name,
                        "calibration_tokens": calibration_tokens,
                        "max_shard_size": max_shard_size,
                    },
                    "seed": seed,
                    "source": {"name": _source_name(model), "sha256": reader.sha256()},
                    "metrics": result.metrics(),
                }
            )
            return result


def _load_dataset(
    source: Path,
    config: HybridConfig,
    calibration: str | Path | None,
    tokens: int,
    seed: int,
    device: torch.device,
) -> PackedDataset:
    return load_packed_dataset(
        [TEACHER if calibration is None else str(calibration)],
        model=source,
        length=min(_WINDOW, config.max_position_embeddings),
        tokens=tokens,
        seed=seed,
        device=device,
        option="--calibration",
    )


def _specs(
    entry: Entry, reader: CheckpointReader, scheme: Scheme, targets: Mapping[str, Target]
) -> list[TensorSpec]:
    """Return what is written for one of the source's tensors."""
    if entry.disk not in targets:
        return [TensorSpec(entry.disk, entry.shape, reader.dtype(entry.disk))]
    stem = entry.disk.removesuffix("weight")
    shape = scheme.quantization.scale_shape(entry.shape)
    specs = [
        TensorSpec(entry.disk, entry.shape, FP8),
        TensorSpec(stem + "weight_scale", shape, torch.float32),
    ]
    if scheme.quantization.static:
        specs.append(TensorSpec(stem + "input_scale", (1,), torch.float32))
    return specs


def _write(
    writer: CheckpointWriter,
    entries: Sequence[Entry],
    reader: CheckpointReader,
    scheme: Scheme,
    targets: Mapping[str, Target],
    maxima: Mapping[str, torch.Tensor],
) -> None:
    total = sum(reader.nbytes(entry.disk) for entry in entries)
    with console.progress("quantizing", total, "bytes") as progress:
        for entry in entries:
            tensor = reader.get(entry.disk)
            if not is_finite(tensor):
                raise InputError(
                    f"{reader.directory}: tensor {entry.disk!r} has NaN or infinity in it, which "
                    "has no FP8 scale; mend the checkpoint first"
                )
            if entry.disk in targets:
                values, scale = scheme.quantize(tensor)
                stem = entry.disk.removesuffix("weight")
                writer.add(entry.disk, values)
                writer.add(stem + "weight_scale", scale)
                if scheme.quantization.static:
                    largest = torch.cat([maxima[name] for name in entry.ours]).amax().reshape(1)
                    writer.add(stem + "input_scale", scheme.input_scale(largest))
            else:
                writer.add(entry.disk, tensor)
            progress.advance(reader.nbytes(entry.disk))


def _source_name(model: str | Path) -> str:
    """Name a source without the path of this machine: a hub id, or the directory's own name."""
    return Path(model).resolve().name if Path(model).exists() else str(model)
