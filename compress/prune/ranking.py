"""Candidates cut in memory, and put in order by how far they are from the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hybridize.checkpoints.formats import FORMATS, Fit, Format
from hybridize.checkpoints.formats.choose import choose_format
from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.budget import Budget, Parameters
from hybridize.compress.prune.cut import CutTensors
from hybridize.compress.prune.results import ScoredCandidate
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import Candidate
from hybridize.compress.prune.spread import spread
from hybridize.console import console
from hybridize.data.kl import measure_kl
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.materialize import materialize
from hybridize.modeling.model import HybridForCausalLM


@dataclass(frozen=True)
class Entrant:
    """A candidate and what holds it.

    Attributes:
        architecture: what it is.
        damage: what it is expected to lose, in nats per token.
        config, format, fit, reason: the model, and how and why it would be stored.
        costs: what the budgets limit, in words.
        what: in what it differs from the model.
        kl: measured divergence from the model.
        kl_distilled: the same after a short distillation.
    """

    architecture: Architecture
    damage: float
    config: HybridConfig
    format: Format
    fit: Fit
    reason: str
    costs: tuple[str, ...]
    what: str
    kl: float | None = None
    kl_distilled: float | None = None

    @property
    def parameters(self) -> int:
        """How many, as stored."""
        return int(Parameters(0).of(self.fit.config))

    def described(self, chosen: bool) -> ScoredCandidate:
        """Return what a table says of it."""
        return ScoredCandidate(
            what=self.what,
            layout=self.config.layout,
            format=self.format.name,
            parameters=self.parameters,
            costs=self.costs,
            damage=self.damage,
            kl=self.kl,
            kl_distilled=self.kl_distilled,
            chosen=chosen,
        )


class Contest:
    """What a search found, made comparable.

    Args:
        config: the model.
        scores: of its parts.
        source_format: what it comes in.
        format_name: what was asked for, or ``auto``.
        budgets: all have to be met.
    """

    def __init__(
        self,
        config: HybridConfig,
        scores: Scores,
        source_format: Format,
        format_name: str,
        budgets: Sequence[Budget],
    ) -> None:
        self._config, self._scores, self._budgets = config, scores, budgets
        self._source_format, self._format_name = source_format, format_name

    def enter(
        self, found: Sequence[Candidate], *, per_block: bool, multiple_of: int | None
    ) -> list[Entrant]:
        """Return candidates within the budgets, the most promising first.

        Those that only hybridize's own format holds come last, unless the model is of it or that
        was asked for.

        Args:
            found: the candidates, best first.
            per_block: give each a version with widths of each block's own, right before it.
            multiple_of: see `spread`.

        Raises:
            InputError: none of them can be stored within the budgets.
        """
        entrants = []
        for candidate in found:
            architectures = [candidate.architecture]
            if per_block:
                own = spread(candidate.architecture, self._config, self._scores, multiple_of)
                architectures = [own, *architectures] if own.single else architectures
            entrants += [self._enter(one, candidate.damage) for one in architectures]
        entrants = [entrant for entrant in entrants if self._within(entrant.fit.config)]
        if not entrants:
            raise InputError(
                f"--format {self._format_name}: what it adds to the smaller models goes beyond "
                "the budget; choose another format or raise the budget"
            )
        own_format = FORMATS["hybridize"]
        last = not per_block and self._source_format is not own_format
        return sorted(entrants, key=lambda entrant: last and entrant.format is own_format)

    def _enter(self, architecture: Architecture, damage: float) -> Entrant:
        config = architecture.config(self._config)
        format_, fit, reason = choose_format(config, self._format_name, self._source_format)
        if self._format_name == "auto" and not self._within(fit.config):
            reason = f"not {format_.name}: what it would add goes beyond the budget"
            format_, fit, _ = choose_format(config, "hybridize")
        return Entrant(
            architecture=architecture,
            damage=damage,
            config=config,
            format=format_,
            fit=fit,
            reason=reason,
            costs=tuple(budget.in_words(budget.of(fit.config)) for budget in self._budgets),
            what=architecture.in_words(self._config),
        )

    def _within(self, config: HybridConfig) -> bool:
        return all(budget.of(config) <= budget.limit for budget in self._budgets)


def hold(
    entrants: Sequence[Entrant],
    teacher: HybridForCausalLM,
    tensors: Tensors,
    scores: Scores,
    dataset: PackedDataset,
    record: Path | None = None,
) -> list[Entrant]:
    """Measure candidates, and return them with the closest to the model first.

    Args:
        entrants: the candidates.
        teacher: the model, in float32.
        tensors: its tensors.
        scores: what stays and what goes.
        dataset: text.
        record: a file that remembers what was measured, for a run that is killed.
    """
    known = {} if record is None else _remembered(record)
    measured = []
    with console.progress("measuring candidates", len(entrants), "candidates") as progress:
        for entrant in entrants:
            key = repr(entrant.architecture)
            if key not in known:
                cut = CutTensors(tensors, teacher.config, entrant.architecture, scores)
                student = assemble(cut, cut.config, teacher.device)
                known[key] = measure_kl(student, teacher, dataset)
                if record is not None:
                    with record.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([key, known[key]]) + "\n")
            measured.append(replace(entrant, kl=known[key]))
            progress.advance()
    return sorted(measured, key=lambda entrant: entrant.kl or 0.0)


def _remembered(record: Path) -> dict[str, float]:
    """Return what was measured before a run was killed, maybe amid a line."""
    known: dict[str, float] = {}
    try:
        for line in record.read_text("utf-8").splitlines(keepends=True) if record.exists() else ():
            if line.endswith("\n"):
                architecture, kl = json.loads(line)
                known[str(architecture)] = float(kl)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{record}: cannot go on from it: {error}; --force starts anew") from error
    return known


def assemble(tensors: Tensors, config: HybridConfig, device: torch.device) -> HybridForCausalLM:
    """Return a model of tensors, in float32 and not for training."""
    return materialize(lambda: HybridForCausalLM(config), tensors.get, device)
