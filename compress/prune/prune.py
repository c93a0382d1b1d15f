"""`hybridize prune`: the best smaller model within a budget, cut out of a checkpoint.

After MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4) and Minitron-SSM (Taghibakhshi et al.
2025, arXiv 2504.11409): importance from forward passes, a search over whole architectures, and the
best of them cut in memory and measured. The winner is cut again from disk to disk.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.budget import Budget, Parameters, parse_memory, parse_parameters
from hybridize.compress.prune.cut import CutTensors
from hybridize.compress.prune.importance import measure
from hybridize.compress.prune.plot import draw_importance
from hybridize.compress.prune.results import PruningResult, ScoredCandidate
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import DEPTH, Candidate, Found, search
from hybridize.console import console
from hybridize.errors import InputError
from hybridize.kernels import linear_kl_divergence
from hybridize.modeling.checkpoint import CheckpointReader, check_output
from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.data.source import TEACHER, load_windows
from hybridize.modeling.data.windows import Windows
from hybridize.modeling.formats import FORMATS, Fit, Format, read_config
from hybridize.modeling.formats.choose import choose_format
from hybridize.modeling.hub import resolve
from hybridize.modeling.load import load_model
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.placement import DTYPES, choose_device
from hybridize.modeling.probe import batches_of
from hybridize.modeling.stream import Outgoing, outgoing, source_name, write
from hybridize.modeling.tensors import CheckpointTensors, Tensors

ALL_AXES = (DEPTH, *AXES)
_WINDOW = 512  # tokens in a row
_HELD_OUT = 4  # one row in so many is for measuring candidates
_MORE = 30  # as many candidates are looked at for whether a stock format holds them


def prune(
    model: str | Path,
    output: str | Path,
    *,
    params: str | int | None = None,
    memory: str | None = None,
    axes: Sequence[str] = ALL_AXES,
    calibration: str | Path = TEACHER,
    calibration_tokens: int = 16_384,
    scores: str | Path | None = None,
    candidates: int = 16,
    multiple_of: int | None = None,
    offload: bool = False,
    format: str = "auto",
    dtype: str = "auto",
    max_shard_size: int = 5_000_000_000,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    dry_run: bool = False,
) -> PruningResult:
    """Make a checkpoint smaller: hybrid or plain Transformer, in any format that hybridize reads.

    The cut is exact: what leaves are rows and columns, and norms are corrected for what they no
    longer see. Distil the result from the original to get back what it lost.

    Args:
        model: a directory or a hub id.
        output: the directory to write.
        params: the most parameters: a share (``"70%"``) or a number (``"1.3B"``).
        memory: the most memory of weights, cache and states, ``SIZE@CONTEXT[xBATCH]``, such as
            ``"24GiB@65536x4"``, in the dtype that is stored. With ``params``, both have to hold.
        axes: what may be cut: ``depth`` and names of `compress.prune.axes.AXES`.
        calibration: text that importance is measured on: a file, a dataset, or ``teacher``,
            which lets the model write it.
        calibration_tokens: how much of it; a quarter is kept for measuring candidates.
        scores: a file with importance that was measured before; measured and written if it does
            not exist.
        candidates: how many architectures to cut and measure.
        multiple_of: what hidden size and MLP width are multiples of; about a sixteenth of the
            size if None.
        offload: hold one block in memory at a time; the best candidate is then the one that is
            expected to be, as measuring needs the whole model.
        format: ``auto`` or a format's name.
        dtype: ``auto`` (as in the source), ``float32``, ``bfloat16`` or ``float16``.
        max_shard_size: bytes per safetensors file.
        seed: of sampled text.
        device: where to measure.
        force: replace an existing output.
        dry_run: measure and search, but write no checkpoint.

    Raises:
        InputError: an option or the source is wrong, or no smaller model meets the budget.
        HybridizeError: writing failed; the output is as it was before.
    """
    _check(params, memory, axes, candidates, multiple_of, format, dtype)
    source_dir, output = resolve(model), Path(output)
    place = choose_device(device)
    with CheckpointReader(source_dir) as reader:
        source_format, config = read_config(reader)
        tensors = CheckpointTensors(reader, source_format, config)
        wanted = DTYPES.get(dtype)
        width = (wanted or reader.dtype(reader.names[0])).itemsize
        budgets: list[Budget] = []
        if params is not None:
            budgets.append(parse_parameters(str(params), config))
        if memory is not None:
            budgets.append(parse_memory(memory, width))
        if not dry_run:
            check_output(output, source_dir, force=force)
        reader.hash_in_background()
        windows = load_windows(
            [str(calibration)],
            model=source_dir,
            length=min(_WINDOW, config.max_position_embeddings),
            tokens=calibration_tokens,
            seed=seed,
            device=place,
            option="--calibration",
        )
        if len(windows) < 2:
            raise InputError(
                f"--calibration {calibration}: {windows.tokens:,} tokens; two rows of "
                f"{windows.length} or more are needed"
            )
        seen, held_out = windows.split(max(1, len(windows) // _HELD_OUT))
        importance = _importance(
            scores, source_dir, tensors, config, seen, place, _fingerprint(reader), offload
        )
        found = search(
            config,
            importance,
            budgets,
            axes,
            best=candidates * _MORE,
            multiple_of=multiple_of,
            blocks_per_layer=source_format.names.blocks_per_layer,
        )
        best = _Contest(tensors, config, importance, source_format, format)
        entrants = best.enter(found, budgets)[:candidates]
        scored = best.hold(entrants, None if offload else held_out, source_dir, place)
        chosen = scored[0]
        cut = CutTensors(tensors, config, chosen.candidate.architecture, importance)
        out = outgoing(cut, cut.config, chosen.format, chosen.fit, wanted)
        result = PruningResult(
            source=source_dir,
            output=output,
            source_format=source_format.name,
            format=chosen.format.name,
            reason=chosen.reason,
            notes=chosen.fit.notes,
            layout_before=config.layout,
            layout_after=cut.config.layout,
            parameters_before=int(Parameters(0).of(config)),
            parameters_after=chosen.parameters,
            bytes_before=sum(reader.nbytes(name) for name in reader.names),
            bytes_after=out.nbytes,
            costs_before=tuple(budget.in_words(budget.of(config)) for budget in budgets),
            candidates=tuple(one.described(one is chosen) for one in scored),
            looked_at=found.looked_at,
            fitting=found.fitting,
            block_importance=tuple(importance.blocks.tolist()),
            dry_run=dry_run,
        )
        if dry_run:
            return result
        out.config.dtype = wanted or config.dtype
        _write(out, result, reader, source_format, importance, model, force, max_shard_size, seed)
        return result


def _importance(
    path: str | Path | None,
    source: Path,
    tensors: Tensors,
    config: HybridConfig,
    windows: Windows,
    device: torch.device,
    fingerprint: str,
    offload: bool,
) -> Scores:
    """Measure importance, or read what was measured before."""
    if path is not None and Path(path).exists():
        return Scores.load(Path(path), fingerprint)
    measured = measure(
        source, tensors, config, windows, device, source=fingerprint, offload=offload
    )
    if path is not None:
        measured.save(Path(path))
        console.message(f"written: {path}")
    return measured


def _fingerprint(reader: CheckpointReader) -> str:
    """Return one hash for all weight files."""
    return hashlib.sha256(json.dumps(sorted(reader.sha256().items())).encode()).hexdigest()


@dataclass
class _Entrant:
    """A candidate, what holds it, and how far it is from the model."""

    candidate: Candidate
    config: HybridConfig
    format: Format
    fit: Fit
    reason: str
    parameters: int
    costs: tuple[str, ...]
    what: str
    kl: float | None = None

    def described(self, chosen: bool) -> ScoredCandidate:
        return ScoredCandidate(
            what=self.what,
            layout=self.config.layout,
            format=self.format.name,
            parameters=self.parameters,
            costs=self.costs,
            damage=self.candidate.damage,
            kl=self.kl,
            chosen=chosen,
        )


class _Contest:
    """Cuts candidates in memory, and puts them in order."""

    def __init__(
        self,
        tensors: Tensors,
        config: HybridConfig,
        importance: Scores,
        source_format: Format,
        format_name: str,
    ) -> None:
        self._tensors, self._config, self._importance = tensors, config, importance
        self._source_format, self._format_name = source_format, format_name

    def enter(self, found: Found, budgets: Sequence[Budget]) -> list[_Entrant]:
        """Return all candidates, the most promising first.

        Those that only hybridize's own format holds come last, unless the model is of it.
        """
        entrants = [self._enter(candidate, budgets) for candidate in found.candidates]
        entrants = [entrant for entrant in entrants if _within(budgets, entrant.fit.config)]
        if not entrants:
            raise InputError(
                f"--format {self._format_name}: what it adds to the smaller models goes beyond "
                "the budget; choose another format or raise the budget"
            )
        own = FORMATS["hybridize"]
        return sorted(entrants, key=lambda e: e.format is own and self._source_format is not own)

    def hold(
        self,
        entrants: list[_Entrant],
        windows: Windows | None,
        source: Path,
        device: torch.device,
    ) -> list[_Entrant]:
        """Return candidates, the closest to the model first; as they were without text."""
        if windows is None:
            return entrants
        teacher = load_model(source, dtype=torch.float32, device=device)
        runs = len(entrants) * len(windows)
        with console.progress("measuring candidates", runs, "rows") as progress:
            for entrant in entrants:
                entrant.kl = self._divergence(entrant, teacher, windows)
                progress.advance(len(windows))
        return sorted(entrants, key=lambda entrant: entrant.kl or 0.0)

    def _enter(self, candidate: Candidate, budgets: Sequence[Budget]) -> _Entrant:
        config = candidate.architecture.config(self._config)
        format_, fit, reason = choose_format(config, self._format_name, self._source_format)
        if self._format_name == "auto" and not _within(budgets, fit.config):
            reason = f"not {format_.name}: what it would add goes beyond the budget"
            format_, fit, _ = choose_format(config, "hybridize")
        return _Entrant(
            candidate=candidate,
            config=config,
            format=format_,
            fit=fit,
            reason=reason,
            parameters=int(Parameters(0).of(fit.config)),
            costs=tuple(budget.in_words(budget.of(fit.config)) for budget in budgets),
            what=candidate.architecture.in_words(self._config),
        )

    @torch.no_grad()
    def _divergence(self, entrant: _Entrant, teacher: HybridForCausalLM, windows: Windows) -> float:
        cut = CutTensors(
            self._tensors, self._config, entrant.candidate.architecture, self._importance
        )
        student = assemble(cut, cut.config, teacher.device)
        total = 0.0
        for rows in batches_of(windows):
            ids, seq_idx = (t.to(teacher.device) for t in windows.rows(rows))
            hidden = [
                model.model(ids, seq_idx=seq_idx, use_cache=False).last_hidden_state.flatten(0, 1)
                for model in (student, teacher)
            ]
            loss = linear_kl_divergence(
                hidden[0],
                student.lm_head.weight,
                hidden[1],
                teacher.lm_head.weight,
                scales=(1 / student.config.logits_scaling, 1 / teacher.config.logits_scaling),
            )
            total += float(loss) * len(rows) / len(windows)
        return total


def _within(budgets: Sequence[Budget], config: HybridConfig) -> bool:
    return all(budget.of(config) <= budget.limit for budget in budgets)


def assemble(tensors: Tensors, config: HybridConfig, device: torch.device) -> HybridForCausalLM:
    """Return a model of tensors, in float32 and not for training."""
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    model.to_empty(device=device)
    with torch.no_grad():
        for name in parameter_shapes(config):
            model.get_parameter(name).copy_(tensors.get(name))
    model.tie_weights()
    if model.model.rotary_emb is not None:
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.requires_grad_(False).eval()


def _write(
    out: Outgoing,
    result: PruningResult,
    reader: CheckpointReader,
    source_format: Format,
    importance: Scores,
    model: str | Path,
    force: bool,
    max_shard_size: int,
    seed: int,
) -> None:
    chosen = result.candidates[0]
    provenance = {
        "command": "prune",
        "options": {"costs": list(chosen.costs), "format": result.format},
        "seed": seed,
        "source": {"name": source_name(model), "sha256": reader.sha256()},
        "metrics": {
            "what": chosen.what,
            "kl": chosen.kl,
            "layout_before": result.layout_before,
            "layout_after": result.layout_after,
            "parameters_before": result.parameters_before,
            "parameters_after": result.parameters_after,
        },
    }
    write(
        out,
        result.output,
        reader=reader,
        source_format=source_format,
        step=lambda files: provenance,
        label="cutting",
        force=force,
        max_shard_size=max_shard_size,
        extra_files={"importance.png": draw_importance(importance, result.layout_before)},
    )


def _check(
    params: str | int | None,
    memory: str | None,
    axes: Sequence[str],
    candidates: int,
    multiple_of: int | None,
    format: str,
    dtype: str,
) -> None:
    if params is None and memory is None:
        raise InputError("give a budget: --params 70% or --memory 24GiB@65536, or both")
    unknown = [axis for axis in axes if axis not in ALL_AXES]
    if unknown or not axes:
        raise InputError(
            f"--axes {unknown[0] if unknown else ''}: choose some of {', '.join(ALL_AXES)}"
        )
    if candidates < 1:
        raise InputError(f"--candidates {candidates}: it must be at least 1")
    if multiple_of is not None and multiple_of < 1:
        raise InputError(f"--multiple-of {multiple_of}: it must be at least 1")
    for option, value, choices in (
        ("--format", format, ("auto", *FORMATS)),
        ("--dtype", dtype, ("auto", *DTYPES)),
    ):
        if value not in choices:
            raise InputError(f"{option} {value}: choose one of {', '.join(choices)}")
