"""`hybridize convert`: a Transformer checkpoint becomes a hybrid, one tensor at a time."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader, TensorSpec, check_output
from hybridize.checkpoints.config_only_reader import open_to_plan
from hybridize.checkpoints.formats import FORMATS, read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.streaming_writer import outgoing, source_name, write
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.conversion.calibration import BlockError, Calibrator
from hybridize.conversion.donor import Donor
from hybridize.conversion.first_values import ConvertedTensors, NewValues, first_values
from hybridize.conversion.plan import MambaChoice, Plan, plan_conversion
from hybridize.conversion.plot import draw_curve
from hybridize.conversion.selection import Curve, Point, measure_swaps
from hybridize.data.source import load_windows
from hybridize.errors import InputError
from hybridize.modeling.config import parameter_shapes
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.devices import DTYPES, choose_device
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.layout import ATTENTION, Layout

_CONTEXT = 32 * 1024
_WINDOW = 512  # tokens of calibration text in a row
_SELECTIONS = ("uniform", "sensitivity")
_INITS = ("attention", "random")  # or a hybrid's directory


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
        errors: how far each new block is from its attention block, where it was calibrated.
        curve: what each step from all attention to none costs, where it was measured.
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
    errors: tuple[BlockError, ...]
    curve: tuple[Point, ...]
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
    init: str | Path = "attention",
    calibration: str | Path | None = None,
    calibration_tokens: int = 8192,
    ssm_groups: str | int = "heads",
    ssm_expand: int = 1,
    d_state: int | None = None,
    ssm_bias: bool = True,
    format: str = "auto",
    dtype: str = "auto",
    max_shard_size: int = 5_000_000_000,
    seed: int = 0,
    device: str = "auto",
    allow_nonfinite: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> ConversionResult:
    """Turn attention blocks of a checkpoint into Mamba-2 blocks.

    Streams: memory holds one block at a time, whatever the size of the checkpoint. Selection by
    sensitivity and text from the teacher need the whole model in memory.

    Args:
        model: a directory or a hub id, in any format that hybridize reads.
        output: the directory to write.
        attention: how many attention blocks to keep, or a percentage (``"25%"``, the default).
        keep: which attention blocks to keep, counted from 0.
        pattern: the whole layout of the result; only ``*`` may have become ``M``. At most one
            of ``attention``, ``keep`` and ``pattern`` is given.
        select: how ``attention`` chooses: ``uniform`` spreads them evenly, ``sensitivity`` keeps
            those whose loss costs the most, measured on the calibration text.
        init: first values of new blocks: ``attention`` (from the replaced block), ``random``, or
            the directory of a hybrid of the same model, whose Mamba-2 blocks are taken over.
        calibration: text that new blocks are fitted on, unless they are taken over: a file, a
            dataset, or ``teacher``, which lets the model write it. None fits nothing, unless
            ``sensitivity`` asks for text.
        calibration_tokens: how much of it, in tokens.
        ssm_groups: separate B and C per query head (``heads``), per key/value head (``kv``), or
            a number of groups that divides the heads.
        ssm_expand: width of a new block in units of the attention's: 1, or 2 as GGUF needs.
        d_state: state size per head; the attention's head dim if None.
        ssm_bias: give the new blocks' projections biases, one of which holds the gate open at the
            start; without, as GGUF needs it, ``calibration`` finds weights that do. ``random``
            blocks have none in any case.
        format: ``auto`` or a format's name.
        dtype: ``auto`` (as in the source), ``float32``, ``bfloat16`` or ``float16``.
        max_shard_size: bytes per safetensors file.
        seed: of everything random.
        device: where calibration and selection compute.
        allow_nonfinite: go on when the source has NaN or infinity in its weights.
        force: replace an existing output.
        dry_run: plan only; nothing is written, and config.json is enough where nothing is measured.

    Returns:
        What was done, with the figures that the command shows.

    Raises:
        InputError: an option or the source is wrong; nothing was written.
        HybridizeError: writing failed; the output is as it was before.
    """
    _check_choices(select=select, format=format, dtype=dtype)
    if ssm_expand not in (1, 2):
        raise InputError(f"--ssm-expand {ssm_expand}: choose 1 or 2")
    if d_state is not None and d_state < 1:
        raise InputError(f"--d-state {d_state}: it must be at least 1")
    donor_dir = None if init in _INITS else Path(init)
    if donor_dir is not None and not donor_dir.is_dir():
        raise InputError(
            f"--init {init}: choose attention, random, or the directory of a converted model"
        )
    if calibration is not None and init != "attention" and select != "sensitivity":
        raise InputError(f"--calibration fits --init attention, not --init {init}")
    if select == "sensitivity":
        if keep is not None or pattern is not None:
            raise InputError(
                "--select sensitivity chooses what --attention keeps; leave out "
                "--keep and --pattern"
            )
        if init == "random":
            raise InputError("--select sensitivity needs --init attention or a hybrid, not random")
        calibration = "teacher" if calibration is None else calibration
    if not ssm_bias and init == "attention" and calibration is None:
        raise InputError(
            "--no-ssm-bias: weights that hold the gate open without a bias are found on a text; "
            "give --calibration"
        )
    options = {
        "attention": None if attention is None else str(attention),
        "keep": None if keep is None else list(keep),
        "pattern": pattern,
        "select": select,
        "init": init if donor_dir is None else donor_dir.resolve().name,
        "calibration": None if calibration is None else Path(calibration).name,
        "calibration_tokens": calibration_tokens,
        "ssm_groups": str(ssm_groups),
        "ssm_expand": ssm_expand,
        "d_state": d_state,
        "ssm_bias": ssm_bias,
        "format": format,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
    }
    shapes_alone = dry_run and calibration is None
    source_dir, output = resolve(model, weights=not shapes_alone), Path(output)
    with ExitStack() as opened:
        reader = opened.enter_context(
            open_to_plan(source_dir)
            if shapes_alone and source_dir.is_dir()
            else CheckpointReader(source_dir, allow_nonfinite=allow_nonfinite)
        )
        source_format, config = read_config(reader)
        tensors = CheckpointTensors(reader, source_format, config)
        mamba = MambaChoice(str(ssm_groups), ssm_expand, d_state, ssm_bias and init != "random")
        new_values: NewValues
        calibrator = curve = None
        if donor_dir is None:

            def new_values(index: int, sizes: MambaSizes) -> dict[str, torch.Tensor]:
                values = first_values(tensors, index, sizes, config, str(init), seed)
                return values if calibrator is None else calibrator.fit(index, sizes, values)

        else:
            new_values = opened.enter_context(Donor(donor_dir, config)).values
        if calibration is not None:
            place = choose_device(device)
            windows = load_windows(
                [str(calibration)],
                model=source_dir,
                length=min(_WINDOW, config.max_position_embeddings),
                tokens=calibration_tokens,
                seed=seed,
                device=place,
                option="--calibration",
            )
            if donor_dir is None:
                remember = select == "sensitivity"  # both measuring and writing need them
                calibrator = Calibrator(tensors, config, windows, place, remember=remember)
            if select == "sensitivity":
                curve = measure_swaps(source_dir, mamba, new_values, windows, place)
        plan = plan_conversion(
            config,
            attention=None if attention is None else str(attention),
            keep=None if keep is None else tuple(keep),
            pattern=pattern,
            mamba=mamba,
            format_name=format,
            choose=None if curve is None else curve.keep,
        )
        wanted = DTYPES.get(dtype)
        converted = ConvertedTensors(
            tensors, config, plan.target, new_values, allow_nonfinite=allow_nonfinite
        )
        model_out = outgoing(converted, plan.target, plan.format, plan.fit, wanted)
        result = _describe(
            plan, reader, output, source_format.name, model_out.specs, curve, dry_run
        )
        if dry_run:
            return result
        check_output(output, source_dir, force=force)
        reader.hash_in_background()
        plan.fit.config.dtype = wanted or config.dtype

        def finished(files: int) -> dict[str, Any]:
            nonlocal result
            fitted = () if calibrator is None else calibrator.errors
            errors = tuple(error for error in fitted if error.block in plan.layout.swapped)
            result = replace(result, files=files, errors=errors)
            return {
                "command": "convert",
                "options": options,
                "seed": seed,
                "source": {"name": source_name(model), "sha256": reader.sha256()},
                "metrics": _metrics(plan, result),
            }

        write(
            model_out,
            output,
            reader=reader,
            source_format=source_format,
            step=finished,
            label="converting",
            force=force,
            max_shard_size=max_shard_size,
            extra_files={} if curve is None else {"sensitivity.png": draw_curve(curve, plan.kept)},
        )
        return result


def _metrics(plan: Plan, result: ConversionResult) -> dict[str, Any]:
    """Return what the provenance keeps of the result."""
    metrics: dict[str, Any] = {
        "layout_before": result.layout_before,
        "layout_after": result.layout_after,
        "swapped_blocks": sorted(plan.layout.swapped),
        "source_format": result.source_format,
        "format": result.format,
        "parameters_before": result.parameters_before,
        "parameters_after": result.parameters_after,
    }
    if result.errors:
        metrics["block_errors"] = [asdict(error) for error in result.errors]
    if result.curve:
        metrics["sensitivity"] = [asdict(point) for point in result.curve]
    return metrics


def _describe(
    plan: Plan,
    reader: CheckpointReader,
    output: Path,
    source_format: str,
    specs: Sequence[TensorSpec],
    curve: Curve | None,
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
        errors=(),
        curve=() if curve is None else curve.points,
        files=0,
        dry_run=dry_run,
    )


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _check_choices(*, select: str, format: str, dtype: str) -> None:
    for option, value, choices in (
        ("--select", select, _SELECTIONS),
        ("--format", format, ("auto", *FORMATS)),
        ("--dtype", dtype, ("auto", *DTYPES)),
    ):
        if value not in choices:
            raise InputError(f"{option} {value}: choose one of {', '.join(choices)}")
