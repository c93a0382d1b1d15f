"""`hybridize convert`: a Transformer checkpoint becomes a hybrid, one tensor at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from hybridize.console import console
from hybridize.convert.initialise import ConvertedTensors
from hybridize.convert.plan import MambaChoice, Plan, plan_conversion
from hybridize.errors import InputError
from hybridize.modeling.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    check_output,
)
from hybridize.modeling.config import parameter_shapes
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.formats import FORMATS, Entry, read_config
from hybridize.modeling.hub import resolve
from hybridize.modeling.layout import ATTENTION, Layout
from hybridize.modeling.placement import DTYPES
from hybridize.modeling.tensors import AdaptedTensors, CheckpointTensors, Tensors

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_CONTEXT = 32 * 1024
_SELECTIONS = ("uniform",)
_INITS = ("attention", "random")


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did, or would do.

    Attributes:
        source, output: directories.
        source_format, format: the on-disk architectures.
        reason: why this format.
        notes: what a user should know about the result.
        layout_before, layout_after: the patterns.
        kept, swapped: attention blocks, counted among the source's attention blocks from 0.
        parameters_before, parameters_after: counts.
        bytes_before, bytes_after: sizes of the weights.
        cache_before, cache_after: bytes of one sequence's cache at 32k tokens.
        files: how many safetensors files; 0 for a dry run.
        dry_run: whether nothing was written.
    """

    source: Path
    output: Path
    source_format: str
    format: str
    reason: str
    notes: tuple[str, ...]
    layout_before: str
    layout_after: str
    kept: tuple[int, ...]
    swapped: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    cache_before: int
    cache_after: int
    files: int
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}


def convert(
    model: str | Path,
    output: str | Path,
    *,
    attention: str | int | None = None,
    keep: Sequence[int] | None = None,
    pattern: str | None = None,
    select: str = "uniform",
    init: str = "attention",
    ssm_groups: str | int = "heads",
    ssm_expand: int = 1,
    d_state: int | None = None,
    format: str = "auto",
    dtype: str = "auto",
    max_shard_size: int = 5_000_000_000,
    seed: int = 0,
    allow_nonfinite: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> ConversionResult:
    """Turn attention blocks of a checkpoint into Mamba-2 blocks.

    Streams: memory holds one block at a time, whatever the size of the checkpoint.

    Args:
        model: a directory or a hub id, in any format that hybridize reads.
        output: the directory to write.
        attention: how many attention blocks to keep, or a percentage (``"25%"``, the default).
        keep: which attention blocks to keep, counted from 0.
        pattern: the whole layout of the result; only ``*`` may have become ``M``. At most one
            of ``attention``, ``keep`` and ``pattern`` is given.
        select: how ``attention`` chooses: ``uniform`` spreads them evenly.
        init: first values of new blocks: ``attention`` (from the replaced block) or ``random``.
        ssm_groups: separate B and C per query head (``heads``), per key/value head (``kv``), or
            a number of groups that divides the heads.
        ssm_expand: width of a new block in units of the attention's: 1, or 2 as GGUF needs.
        d_state: state size per head; the attention's head dim if None.
        format: ``auto`` or a format's name.
        dtype: ``auto`` (as in the source), ``float32``, ``bfloat16`` or ``float16``.
        max_shard_size: bytes per safetensors file.
        seed: of everything random.
        allow_nonfinite: go on when the source has NaN or infinity in its weights.
        force: replace an existing output.
        dry_run: plan only; nothing is written.

    Returns:
        What was done, with the figures that the command shows.

    Raises:
        InputError: an option or the source is wrong; nothing was written.
        HybridizeError: writing failed; the output is as it was before.
    """
    _check_choices(select=select, init=init, format=format, dtype=dtype)
    if ssm_expand not in (1, 2):
        raise InputError(f"--ssm-expand {ssm_expand}: choose 1 or 2")
    if d_state is not None and d_state < 1:
        raise InputError(f"--d-state {d_state}: it must be at least 1")
    options = {
        "attention": None if attention is None else str(attention),
        "keep": None if keep is None else list(keep),
        "pattern": pattern,
        "select": select,
        "init": init,
        "ssm_groups": str(ssm_groups),
        "ssm_expand": ssm_expand,
        "d_state": d_state,
        "format": format,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
    }
    source_dir, output = resolve(model), Path(output)
    with CheckpointReader(source_dir, allow_nonfinite=allow_nonfinite) as reader:
        source_format, config = read_config(reader)
        tensors = CheckpointTensors(reader, source_format, config)
        plan = plan_conversion(
            config,
            attention=None if attention is None else str(attention),
            keep=None if keep is None else tuple(keep),
            pattern=pattern,
            mamba=MambaChoice(str(ssm_groups), ssm_expand, d_state, proj_bias=init == "attention"),
            format_name=format,
        )
        wanted = DTYPES.get(dtype)
        converted = ConvertedTensors(tensors, config, plan.target, init, seed)
        adapted = AdaptedTensors(converted, plan.target, plan.fit.config)
        entries = plan.format.tensor_map(plan.fit.config)
        specs = [TensorSpec(e.disk, e.shape, wanted or adapted.dtype(e.ours[0])) for e in entries]
        result = _describe(plan, reader, output, source_format.name, specs, dry_run)
        if dry_run:
            return result
        check_output(output, source_dir, force=force)
        reader.hash_in_background()
        plan.fit.config.dtype = wanted or config.dtype
        raw = plan.format.from_hybrid(plan.fit.config)
        if plan.format is source_format:
            raw = {**reader.config, **raw}  # what we do not understand, we do not lose
        with CheckpointWriter(
            output,
            specs,
            config=raw,
            max_shard_size=max_shard_size,
            force=force,
            source=source_dir,
            extra_files=plan.format.extra_files(plan.fit.config),
        ) as writer:
            total = sum(spec.nbytes for spec in specs)
            with console.progress("converting", total, "bytes") as progress:
                jobs = zip(entries, specs, strict=True)
                for spec, parts in _one_ahead(jobs, lambda job: (job[1], _parts(*job, adapted))):
                    writer.add(spec.name, *parts)
                    progress.advance(spec.nbytes)
            writer.finish(
                {
                    "command": "convert",
                    "options": options,
                    "seed": seed,
                    "source": {"name": _source_name(model), "sha256": reader.sha256()},
                    "metrics": {
                        "layout_before": plan.source.layout,
                        "layout_after": plan.layout.pattern,
                        "swapped_blocks": sorted(plan.layout.swapped),
                        "source_format": source_format.name,
                        "format": plan.format.name,
                        "parameters_before": result.parameters_before,
                        "parameters_after": result.parameters_after,
                    },
                }
            )
            return _with_files(result, writer)


def _parts(entry: Entry, spec: TensorSpec, tensors: Tensors) -> list[torch.Tensor]:
    """Return what one tensor on disk is stacked from."""
    return [tensors.get(name).to(spec.dtype) for name in entry.ours]


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


def _describe(
    plan: Plan,
    reader: CheckpointReader,
    output: Path,
    source_format: str,
    specs: Sequence[TensorSpec],
    dry_run: bool,
) -> ConversionResult:
    places = Layout(plan.source.layout).indices(ATTENTION)
    old = cache_cost(plan.source, _CONTEXT, reader.dtype(reader.names[0]).itemsize)
    new = cache_cost(plan.fit.config, _CONTEXT, specs[0].dtype.itemsize)
    return ConversionResult(
        source=reader.directory,
        output=output,
        source_format=source_format,
        format=plan.format.name,
        reason=plan.reason,
        notes=plan.fit.notes,
        layout_before=plan.source.layout,
        layout_after=plan.layout.pattern,
        kept=plan.kept,
        swapped=tuple(i for i in range(len(places)) if i not in plan.kept),
        parameters_before=_count(parameter_shapes(plan.source).values()),
        parameters_after=_count(spec.shape for spec in specs),
        bytes_before=sum(reader.nbytes(name) for name in reader.names),
        bytes_after=sum(spec.nbytes for spec in specs),
        cache_before=old.kv + old.state,
        cache_after=new.kv + new.state,
        files=0,
        dry_run=dry_run,
    )


def _with_files(result: ConversionResult, writer: CheckpointWriter) -> ConversionResult:
    return replace(result, files=len(writer.files))


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _source_name(model: str | Path) -> str:
    """Name a source without the path of this machine: a hub id, or the directory's own name."""
    return Path(model).resolve().name if Path(model).exists() else str(model)


def _check_choices(*, select: str, init: str, format: str, dtype: str) -> None:
    for option, value, choices in (
        ("--select", select, _SELECTIONS),
        ("--init", init, _INITS),
        ("--format", format, ("auto", *FORMATS)),
        ("--dtype", dtype, ("auto", *DTYPES)),
    ):
        if value not in choices:
            raise InputError(f"{option} {value}: choose one of {', '.join(choices)}")
