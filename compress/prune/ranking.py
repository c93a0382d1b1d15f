"""Candidates: architectures with their on-disk format, ranked by measured KL divergence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hybridize.checkpoints.formats import FORMATS, Fit, Format
from hybridize.checkpoints.formats.choose_format import choose_format
from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.budget import Budget, Parameters
from hybridize.compress.prune.per_block_widths import vary_widths
from hybridize.compress.prune.pruned_tensors import PrunedTensors
from hybridize.compress.prune.results import ScoredCandidate
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import RatedArchitecture
from hybridize.console import console
from hybridize.data.kl import hidden_batches, measure_kl
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.interrupts import uninterrupted
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.materialize import materialize
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.model_spec import ModelSpec


@dataclass(frozen=True)
class Candidate:
    """An architecture, and the on-disk format that would store it.

    Attributes:
        architecture: its sizes.
        damage: the expected KL divergence, in nats per token.
        config: the pruned model.
        format, fit, reason: the on-disk format, the model in this format, and the reason for the
            choice.
        costs: the cost for each budget, with its unit.
        changes: the differences from the model, as text.
        kl: measured KL divergence from the model, in nats per token.
        kl_distilled: the same after a short distillation.
    """

    architecture: Architecture
    damage: float
    config: ModelSpec
    format: Format
    fit: Fit
    reason: str
    costs: tuple[str, ...]
    changes: str
    kl: float | None = None
    kl_distilled: float | None = None

    @property
    def parameters(self) -> int:
        """The number of parameters as stored."""
        return int(Parameters(0).cost(self.fit.spec))

    def summary(self, *, chosen: bool) -> ScoredCandidate:
        """Return the figures that a table shows."""
        return ScoredCandidate(
            changes=self.changes,
            layout=self.config.layout,
            format=self.format.name,
            parameters=self.parameters,
            costs=self.costs,
            damage=self.damage,
            kl=self.kl,
            kl_distilled=self.kl_distilled,
            chosen=chosen,
        )


class Ranker:
    """Turns architectures into candidates, and ranks them.

    Args:
        config: the model.
        scores: the importance of its parts.
        source_format: the model's on-disk format.
        format_name: the option `format`.
        budgets: all must be met.
    """

    def __init__(
        self,
        config: ModelSpec,
        scores: Scores,
        source_format: Format,
        format_name: str,
        budgets: Sequence[Budget],
    ) -> None:
        self._config, self._scores, self._budgets = config, scores, budgets
        self._source_format, self._format_name = source_format, format_name

    def candidates(
        self, found: Sequence[RatedArchitecture], *, per_block: bool, multiple_of: int | None
    ) -> list[Candidate]:
        """Return the candidates whose stored size meets the budgets, the most promising first.

        Candidates that need hybridize's own format come last, unless the source is in this format
        or `per_block` asks for it.

        Args:
            found: the architectures, the least damage first.
            per_block: add a version of each architecture with per-block widths, right before it.
            multiple_of: see `vary_widths`.

        Raises:
            InputError: no candidate can be stored within the budgets.
        """
        candidates = []
        for rated in found:
            architectures = [rated.architecture]
            if per_block:
                varied = vary_widths(rated.architecture, self._config, self._scores, multiple_of)
                architectures = [varied, *architectures] if varied.per_block else architectures
            candidates += [self._candidate(one, rated.damage) for one in architectures]
        candidates = [one for one in candidates if self._within_budgets(one.fit.spec)]
        if not candidates:
            raise InputError(
                f"`format={self._format_name}`: with the parameters that this format adds, no "
                "candidate meets the budget; choose another format or raise the budget"
            )
        own_format = FORMATS["hybridize"]
        own_last = not per_block and self._source_format is not own_format
        return sorted(candidates, key=lambda one: own_last and one.format is own_format)

    def rank_by_kl(
        self,
        candidates: Sequence[Candidate],
        teacher: HybridForCausalLM,
        tensors: Tensors,
        dataset: PackedDataset,
        progress_file: Path | None = None,
    ) -> list[Candidate]:
        """Measure candidates, and return them with the smallest KL divergence first.

        Args:
            candidates: the candidates to measure.
            teacher: the model, in float32.
            tensors: its tensors.
            dataset: the text.
            progress_file: a file for the measurements, which a resumed run reads.
        """
        known = {} if progress_file is None else _read_progress(progress_file)
        measured, expected = [], None
        with console.progress("measuring candidates", len(candidates), "candidates") as progress:
            for candidate in candidates:
                key = repr(candidate.architecture)
                if key not in known:
                    expected = expected or list(hidden_batches(teacher, dataset))
                    student = self.build(candidate, tensors, teacher.device)
                    known[key] = measure_kl(student, teacher, dataset, expected)
                    if progress_file is not None:
                        with uninterrupted(), progress_file.open("a", encoding="utf-8") as file:
                            file.write(json.dumps([key, known[key]]) + "\n")
                measured.append(replace(candidate, kl=known[key]))
                progress.advance()
        return sorted(measured, key=lambda candidate: candidate.kl or 0.0)

    def build(
        self, candidate: Candidate, tensors: Tensors, device: torch.device
    ) -> HybridForCausalLM:
        """Return a candidate as a model in memory, in float32 and without gradients."""
        pruned = PrunedTensors(tensors, self._config, candidate.architecture, self._scores)
        return build_model(pruned, device)

    def _candidate(self, architecture: Architecture, damage: float) -> Candidate:
        config = architecture.apply(self._config)
        format_, fit, reason = choose_format(config, self._format_name, self._source_format)
        if self._format_name == "auto" and not self._within_budgets(fit.spec):
            reason = f"{format_.name} would add parameters beyond the budget"
            format_, fit, _ = choose_format(config, "hybridize")
        return Candidate(
            architecture=architecture,
            damage=damage,
            config=config,
            format=format_,
            fit=fit,
            reason=reason,
            costs=tuple(budget.describe(budget.cost(fit.spec)) for budget in self._budgets),
            changes=architecture.describe(self._config),
        )

    def _within_budgets(self, config: ModelSpec) -> bool:
        return all(budget.cost(config) <= budget.limit for budget in self._budgets)


def build_model(pruned: PrunedTensors, device: torch.device) -> HybridForCausalLM:
    """Return a pruned model in memory, in float32 and without gradients."""
    config = HybridConfig.from_spec(pruned.config)
    return materialize(lambda: HybridForCausalLM(config), pruned.get, device)


def _read_progress(path: Path) -> dict[str, float]:
    """Return the KL divergences that an interrupted run measured, by architecture.

    The last line of the file may be incomplete, and is then ignored.
    """
    known: dict[str, float] = {}
    try:
        for line in path.read_text("utf-8").splitlines(keepends=True) if path.exists() else ():
            if line.endswith("\n"):
                architecture, kl = json.loads(line)
                known[str(architecture)] = float(kl)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be resumed from: {error}; start again with `force`"
        ) from error
    return known
