"""The steps of a pruning, from the calibration text to the output, and its working directory."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.dtypes import itemsize, torch_dtype
from hybridize.checkpoints.files import read_json_object
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.output import move_into_place
from hybridize.compress.prune.budget import Budget, Parameters
from hybridize.compress.prune.budget_options import requested_budgets
from hybridize.compress.prune.config import PruneConfig
from hybridize.compress.prune.finalists import distill_finalists
from hybridize.compress.prune.importance import measure_importance
from hybridize.compress.prune.importance_plot import draw_importance
from hybridize.compress.prune.latency import Latency, step_seconds
from hybridize.compress.prune.output import pruned_checkpoint, write_candidate
from hybridize.compress.prune.ranking import Candidate, Ranker
from hybridize.compress.prune.results import PruningResult
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import SearchResult, search
from hybridize.compress.prune.source import Source
from hybridize.compress.workdir import claim, remove, resumable, work_directory
from hybridize.console import console
from hybridize.data.calibration import CALIBRATION_LENGTH, load_calibration
from hybridize.data.packing import PackedDataset
from hybridize.errors import HybridizeError, InputError
from hybridize.interrupts import tail
from hybridize.modeling.devices import choose_dtype
from hybridize.output_files import check_output_file, write_atomically

_HELD_OUT = 4  # one of four sequences is held out to measure candidates
# The search returns more architectures than are measured, because those that transformers can open
# are preferred.
_ARCHITECTURES_PER_CANDIDATE = 30


@dataclass(frozen=True)
class _Ranking:
    """Ranked candidates, with the search result, the budgets and the scores behind them."""

    candidates: list[Candidate]
    found: SearchResult
    budgets: list[Budget]
    scores: Scores
    step_seconds: tuple[float, float] | None


class PruningRun:
    """Measures, searches, ranks and writes.

    Args:
        source: the model's directory.
        output: the directory to write. The working directory is created beside it.
        options: the options of `prune`.
        device: the device to measure and train on.
    """

    def __init__(
        self,
        source: Path,
        output: Path,
        options: PruneConfig,
        device: torch.device,
    ) -> None:
        self._source_dir, self._output = source, output
        self._options, self._device = options, device
        self._work = work_directory(output, "prune")

    def plan(self) -> PruningResult:
        """Return what `run` would do, without a working directory and without distillation."""
        with CheckpointReader(self._source_dir) as reader:
            source = Source(reader)
            return self._result(source, self._rank(source, None), dry_run=True)

    def run(self) -> PruningResult:
        """Prune, and delete the working directory.

        The working directory is also deleted after an `InputError`, because a resumed run would
        raise it again.
        """
        options = self._options
        if options.scores is not None and not Path(options.scores).exists():
            check_output_file(Path(options.scores), force=False)
        with CheckpointReader(self._source_dir) as reader:
            source = Source(reader)
            with resumable(self._work):
                identity = self._identity(source)
                claim(self._work, identity, resume=options.resume, force=options.force)
                try:
                    ranking = self._rank(source, self._work)
                    return self._write(source, ranking)
                except InputError:
                    if not options.resume:
                        remove(self._work)
                    raise

    def _rank(self, source: Source, work: Path | None) -> _Ranking:
        """Measure importance, search for architectures, and rank the candidates.

        Args:
            source: the checkpoint.
            work: the working directory; None for a dry run.
        """
        options = self._options
        budgets = self._budgets(source, work)
        dataset, held_out = self._load_dataset(source, work)
        scores = self._importance(source, dataset, work)
        found = search(
            source.config,
            scores,
            budgets,
            options.axes,
            count=options.candidates * _ARCHITECTURES_PER_CANDIDATE,
            multiple_of=options.multiple_of,
            blocks_per_layer=source.format.names.blocks_per_layer,
        )
        ranker = Ranker(source.config, scores, source.format, options.format, budgets)
        candidates = ranker.candidates(
            found.best,
            per_block=options.widths == "per-block",
            multiple_of=options.multiple_of,
        )[: options.candidates]
        if options.offload:
            return _Ranking(candidates, found, budgets, scores, None)
        teacher = load_model(self._source_dir, dtype=torch.float32, device=self._device)
        progress_file = None if work is None else work / "candidates.jsonl"
        candidates = ranker.rank_by_kl(candidates, teacher, source.tensors, held_out, progress_file)
        seconds = None
        for budget in budgets:
            if isinstance(budget, Latency):
                student = ranker.build(candidates[0], source.tensors, self._device)
                models = [teacher, student]
                torch.nn.ModuleList(models).to(dtype=self._run_dtype(source))
                before, after = step_seconds(models, budget.context, budget.batch)
                seconds = (before, after)
        return _Ranking(candidates, found, budgets, scores, seconds)

    def _budgets(self, source: Source, work: Path | None) -> list[Budget]:
        """Return the budgets. Timings are saved: a resumed run then finds the same candidates."""
        saved = None if work is None else work / "latency.json"
        known = read_json_object(saved) if saved is not None and saved.exists() else None
        stored = source.dtype if self._options.dtype == "auto" else self._options.dtype
        dtype = self._run_dtype(source)
        budgets = requested_budgets(
            self._options, source.config, itemsize(stored), self._device, dtype, known
        )
        for budget in budgets:
            if isinstance(budget, Latency) and saved is not None and known is None:
                write_atomically(saved, json.dumps(asdict(budget)) + "\n")
        return budgets

    def _run_dtype(self, source: Source) -> torch.dtype:
        return choose_dtype("auto", self._device) or torch_dtype(source.dtype)

    def _load_dataset(
        self, source: Source, work: Path | None
    ) -> tuple[PackedDataset, PackedDataset]:
        """Return the text to measure importance on, and the held-out text for the candidates."""
        options = self._options
        dataset = load_calibration(
            options.calibration,
            model=self._source_dir,
            config=source.config,
            tokens=options.calibration_tokens,
            seed=options.seed,
            device=self._device,
            cache=None if work is None else work / "data",
        )
        if len(dataset) < 2:
            raise InputError(
                f"`calibration={options.calibration}`: it has {dataset.tokens:,} tokens; give at "
                f"least two sequences of {dataset.length}"
            )
        return dataset.split(max(1, len(dataset) // _HELD_OUT))

    def _importance(self, source: Source, dataset: PackedDataset, work: Path | None) -> Scores:
        """Measure importance, or read it if it was measured before."""
        given = None if self._options.scores is None else Path(self._options.scores)
        path = given or (None if work is None else work / "scores.safetensors")
        if path is not None and path.exists():
            return Scores.load(path, source.fingerprint)
        scores = measure_importance(
            self._source_dir,
            source.tensors,
            source.config,
            dataset,
            self._device,
            source=source.fingerprint,
            offload=self._options.offload,
        )
        if path is not None:
            scores.save(path)
        if given is not None:
            console.message(f"written: {given}")
        return scores

    def _write(self, source: Source, ranking: _Ranking) -> PruningResult:
        """Write the best candidate, and delete the working directory.

        With `distill_top`, distill the best ones first.
        """
        options = self._options
        distilled = self._distill(source, ranking) if options.distill_top else None
        result = self._result(source, ranking, dry_run=False)
        with tail():
            if distilled is None:
                write = self._writer(source, ranking, force=options.force)
                write(ranking.candidates[0], self._output)
            else:
                try:
                    move_into_place(distilled, self._output, force=options.force)
                except OSError as error:
                    raise HybridizeError(f"{self._output}: {error.strerror}") from error
            remove(self._work)
        return result

    def _distill(self, source: Source, ranking: _Ranking) -> Path:
        """Distill the best candidates, rank them again, and return the directory of the best."""
        options = self._options
        distilled = distill_finalists(
            ranking.candidates[: options.distill_top],
            self._writer(source, ranking, force=False),
            teacher=self._source_dir,
            work=self._work,
            calibration=options.calibration,
            tokens=options.tokens_per_candidate,
            seq_len=min(CALIBRATION_LENGTH, source.config.max_position_embeddings),
            seed=options.seed,
            device=self._device,
        )
        rest = ranking.candidates[options.distill_top :]
        ranking.candidates[:] = [candidate for candidate, _ in distilled] + rest
        return distilled[0][1]

    def _writer(
        self, source: Source, ranking: _Ranking, *, force: bool
    ) -> Callable[[Candidate, Path], None]:
        """Return a function that writes the pruned checkpoint of a candidate to a directory."""
        scores, options = ranking.scores, self._options
        plot = draw_importance(scores, source.config.layout)

        def write(candidate: Candidate, output: Path) -> None:
            write_candidate(source, candidate, scores, output, options, plot=plot, force=force)

        return write

    def _result(self, source: Source, ranking: _Ranking, *, dry_run: bool) -> PruningResult:
        chosen, config, options = ranking.candidates[0], source.config, self._options
        pruned = pruned_checkpoint(source, chosen, ranking.scores, options.dtype)
        budgets = ranking.budgets
        return PruningResult(
            source=self._source_dir,
            output=self._output,
            source_format=source.format.name,
            format=chosen.format.name,
            reason=chosen.reason,
            notes=chosen.fit.notes,
            layout_before=config.layout,
            layout_after=chosen.config.layout,
            distilled_tokens=0 if chosen.kl_distilled is None else options.tokens_per_candidate,
            parameters_before=int(Parameters(0).cost(config)),
            parameters_after=chosen.parameters,
            bytes_before=sum(source.reader.nbytes(name) for name in source.reader.names),
            bytes_after=pruned.nbytes,
            costs_before=tuple(budget.describe(budget.cost(config)) for budget in budgets),
            candidates=tuple(one.summary(chosen=one is chosen) for one in ranking.candidates),
            considered=ranking.found.considered,
            fitting=ranking.found.fitting,
            block_importance=tuple(ranking.scores.blocks.tolist()),
            step_seconds=ranking.step_seconds,
            dry_run=dry_run,
        )

    def _identity(self, source: Source) -> dict[str, Any]:
        """Return everything that must not change when an interrupted run is resumed."""
        return {
            "source": source.reader.sha256(),
            "device": self._device.type,
            "options": json.loads(json.dumps(self._options.identity())),
        }
