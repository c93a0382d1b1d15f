"""One pruning from its text to its output, and its working directory in between."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.files import put_in_place, read_json_object
from hybridize.checkpoints.formats import Format, read_config
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.streaming_writer import Outgoing, outgoing, source_name, write
from hybridize.checkpoints.tensors import CheckpointTensors, Tensors
from hybridize.compress.prune.budget import Budget, Parameters
from hybridize.compress.prune.cut import CutTensors
from hybridize.compress.prune.finalists import tournament
from hybridize.compress.prune.importance import measure
from hybridize.compress.prune.latency import Latency, step_seconds
from hybridize.compress.prune.plot import draw_importance
from hybridize.compress.prune.ranking import Contest, Entrant, assemble, hold
from hybridize.compress.prune.results import PruningResult
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import Found, search
from hybridize.compress.prune.settings import PruneSettings
from hybridize.compress.workdir import claim, remove
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.data.source import load_packed_dataset
from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.devices import DTYPES, choose_dtype

_WINDOW = 512  # tokens in a row
_HELD_OUT = 4  # one row in so many is for measuring candidates
_MORE = 30  # as many candidates are looked at for whether a stock format holds them


@dataclass(frozen=True)
class _Ranked:
    """Candidates in their order, and all that led to it."""

    entrants: list[Entrant]
    found: Found
    budgets: list[Budget]
    scores: Scores
    step_seconds: tuple[float, float] | None


class Run:
    """A pruning; see `prune` for the arguments."""

    def __init__(
        self,
        model: str | Path,
        source: Path,
        output: Path,
        settings: PruneSettings,
        scores: Path | None,
        device: torch.device,
    ) -> None:
        self._model, self._source, self._output = model, source, output
        self._settings, self._scores, self._device = settings, scores, device
        self._work = output.with_name(f"{output.name}.prune")

    def describe(self) -> PruningResult:
        """Return what would be done, as far as it can be told without distilling."""
        with CheckpointReader(self._source) as reader:
            model = _Source(reader)
            reader.hash_in_background()
            return self._result(model, self._rank(model, None), dry_run=True)

    def prune(self, *, resume: bool, force: bool, max_shard_size: int) -> PruningResult:
        """Do it."""
        with CheckpointReader(self._source) as reader:
            model = _Source(reader)
            reader.hash_in_background()
            claim(self._work, self._identity(model), resume=resume, force=force)
            try:
                ranked = self._rank(model, self._work)
                result = self._finish(model, ranked, force, max_shard_size)
            except InputError:
                if not resume:  # then there is nothing to go on with: the same would come again
                    remove(self._work)
                raise
            remove(self._work)
            return result

    def _finish(
        self, model: "_Source", ranked: _Ranked, force: bool, max_shard_size: int
    ) -> PruningResult:
        settings = self._settings

        def cut_to(entrant: Entrant, target: Path, force: bool) -> None:
            self._write(model, entrant, ranked.scores, target, force, max_shard_size)

        if not settings.distill_top:
            result = self._result(model, ranked, dry_run=False)
            cut_to(ranked.entrants[0], self._output, force)
            return result
        done = tournament(
            ranked.entrants[: settings.distill_top],
            lambda entrant, target: cut_to(entrant, target, False),
            teacher=self._source,
            work=self._work,
            calibration=settings.calibration,
            tokens=settings.tokens_of_each,
            length=min(_WINDOW, model.config.max_position_embeddings),
            seed=settings.seed,
            device=self._device,
        )
        rest = ranked.entrants[settings.distill_top :]
        ranked.entrants[:] = [entrant for entrant, _ in done] + rest
        result = self._result(model, ranked, dry_run=False)
        try:
            put_in_place(done[0][1], self._output, force=force)
        except OSError as error:
            raise HybridizeError(f"{self._output}: {error.strerror}") from error
        return result

    def _rank(self, model: "_Source", work: Path | None) -> _Ranked:
        settings = self._settings
        budgets = self._budgets(model, work)
        seen, held_out = self._load_dataset(model, work)
        scores = self._importance(model, seen, work)
        found = search(
            model.config,
            scores,
            budgets,
            settings.axes,
            best=settings.candidates * _MORE,
            multiple_of=settings.multiple_of,
            blocks_per_layer=model.format.names.blocks_per_layer,
        )
        contest = Contest(model.config, scores, model.format, settings.format, budgets)
        entrants = contest.enter(
            found.candidates,
            per_block=settings.widths == "per-block",
            multiple_of=settings.multiple_of,
        )[: settings.candidates]
        if settings.offload:
            return _Ranked(entrants, found, budgets, scores, None)
        teacher = load_model(self._source, dtype=torch.float32, device=self._device)
        record = None if work is None else work / "candidates.jsonl"
        entrants = hold(entrants, teacher, model.tensors, scores, held_out, record)
        timed = next((budget for budget in budgets if isinstance(budget, Latency)), None)
        seconds = None
        if timed is not None:
            cut = CutTensors(model.tensors, model.config, entrants[0].architecture, scores)
            models = [teacher, assemble(cut, cut.config, self._device)]
            torch.nn.ModuleList(models).to(dtype=self._run_dtype(model))
            before, after = step_seconds(models, timed.context, timed.batch)
            seconds = (before, after)
        return _Ranked(entrants, found, budgets, scores, seconds)

    def _budgets(self, model: "_Source", work: Path | None) -> list[Budget]:
        """Return the budgets; what was timed stays, so that a resumed run finds the same."""
        kept = None if work is None else work / "latency.json"
        known = read_json_object(kept) if kept is not None and kept.exists() else None
        width = (DTYPES.get(self._settings.dtype) or model.dtype).itemsize
        dtype = self._run_dtype(model)
        budgets = self._settings.budgets(model.config, width, self._device, dtype, known)
        for budget in budgets:
            if isinstance(budget, Latency) and kept is not None and known is None:
                kept.write_text(json.dumps(asdict(budget)) + "\n")
        return budgets

    def _run_dtype(self, model: "_Source") -> torch.dtype:
        return choose_dtype("auto", self._device) or model.dtype

    def _load_dataset(
        self, model: "_Source", work: Path | None
    ) -> tuple[PackedDataset, PackedDataset]:
        settings = self._settings
        dataset = load_packed_dataset(
            [settings.calibration],
            model=self._source,
            length=min(_WINDOW, model.config.max_position_embeddings),
            tokens=settings.calibration_tokens,
            seed=settings.seed,
            device=self._device,
            cache=None if work is None else work / "data",
            option="--calibration",
        )
        if len(dataset) < 2:
            raise InputError(
                f"--calibration {settings.calibration}: {dataset.tokens:,} tokens; two rows of "
                f"{dataset.length} or more are needed"
            )
        return dataset.split(max(1, len(dataset) // _HELD_OUT))

    def _importance(self, model: "_Source", dataset: PackedDataset, work: Path | None) -> Scores:
        """Measure importance, or read what was measured before."""
        path = self._scores or (None if work is None else work / "scores.safetensors")
        if path is not None and path.exists():
            return Scores.load(path, model.fingerprint)
        measured = measure(
            self._source,
            model.tensors,
            model.config,
            dataset,
            self._device,
            source=model.fingerprint,
            offload=self._settings.offload,
        )
        if path is not None:
            measured.save(path)
        if self._scores is not None:
            console.message(f"written: {self._scores}")
        return measured

    def _outgoing(self, model: "_Source", entrant: Entrant, scores: Scores) -> Outgoing:
        cut = CutTensors(model.tensors, model.config, entrant.architecture, scores)
        wanted = DTYPES.get(self._settings.dtype)
        return outgoing(cut, cut.config, entrant.format, entrant.fit, wanted)

    def _result(self, model: "_Source", ranked: _Ranked, *, dry_run: bool) -> PruningResult:
        chosen, config = ranked.entrants[0], model.config
        return PruningResult(
            source=self._source,
            output=self._output,
            source_format=model.format.name,
            format=chosen.format.name,
            reason=chosen.reason,
            notes=chosen.fit.notes,
            layout_before=config.layout,
            layout_after=chosen.config.layout,
            distilled_tokens=0 if chosen.kl_distilled is None else self._settings.tokens_of_each,
            parameters_before=int(Parameters(0).of(config)),
            parameters_after=chosen.parameters,
            bytes_before=sum(model.reader.nbytes(name) for name in model.reader.names),
            bytes_after=self._outgoing(model, chosen, ranked.scores).nbytes,
            costs_before=tuple(budget.in_words(budget.of(config)) for budget in ranked.budgets),
            candidates=tuple(one.described(one is chosen) for one in ranked.entrants),
            looked_at=ranked.found.looked_at,
            fitting=ranked.found.fitting,
            block_importance=tuple(ranked.scores.blocks.tolist()),
            step_seconds=ranked.step_seconds,
            dry_run=dry_run,
        )

    def _write(
        self,
        model: "_Source",
        entrant: Entrant,
        scores: Scores,
        target: Path,
        force: bool,
        max_shard_size: int,
    ) -> None:
        wanted = DTYPES.get(self._settings.dtype)
        out = self._outgoing(model, entrant, scores)
        out.config.dtype = wanted or model.config.dtype
        options = self._settings.to_dict() | {
            "format": entrant.format.name,
            "calibration": Path(self._settings.calibration).name,
        }
        provenance = {
            "command": "prune",
            "options": options,
            "seed": self._settings.seed,
            "source": {"name": source_name(self._model), "sha256": model.reader.sha256()},
            "metrics": {
                "what": entrant.what,
                "kl": entrant.kl,
                "costs": list(entrant.costs),
                "layout_before": model.config.layout,
                "layout_after": entrant.config.layout,
                "parameters_before": int(Parameters(0).of(model.config)),
                "parameters_after": entrant.parameters,
            },
        }
        write(
            out,
            target,
            reader=model.reader,
            source_format=model.format,
            step=lambda files: provenance,
            label="cutting",
            force=force,
            max_shard_size=max_shard_size,
            extra_files={"importance.png": draw_importance(scores, model.config.layout)},
        )

    def _identity(self, model: "_Source") -> dict[str, Any]:
        """Return everything that decides what the working directory holds."""
        return {
            "source": model.reader.sha256(),
            "device": self._device.type,
            "settings": json.loads(json.dumps(self._settings.to_dict())),
        }


class _Source:
    """The checkpoint that is cut."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader = reader
        self.format: Format
        self.config: HybridConfig
        self.format, self.config = read_config(reader)
        self.tensors: Tensors = CheckpointTensors(reader, self.format, self.config)
        self.dtype = reader.dtype(reader.names[0])

    @property
    def fingerprint(self) -> str:
        """One hash for all weight files."""
        hashes = json.dumps(sorted(self.reader.sha256().items()))
        return hashlib.sha256(hashes.encode()).hexdigest()
