"""One distillation from its data to its output, and its working directory in between."""

import json
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.save import save_model
from hybridize.compress.distill.distributed import gather, join, like, shard
from hybridize.compress.distill.fp8 import fp8_layers, train_in_fp8
from hybridize.compress.distill.loop import Loop
from hybridize.compress.distill.pair import Pair, load_pair
from hybridize.compress.distill.plot import draw_losses
from hybridize.compress.distill.results import DistillResult, StageResult
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.stages import make_stage
from hybridize.compress.distill.stages.kl import KL
from hybridize.compress.distill.state import Progress, keep_metrics, load_state, save_state
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.workdir import claim, remove
from hybridize.data.packing import PackedDataset
from hybridize.data.source import load_packed_dataset
from hybridize.errors import InputError
from hybridize.modeling.config import parameter_shapes


class Run:
    """A distillation; see `distill` for the arguments.

    ``rows`` is a directory that keeps the text, for several runs to share; each its own if None.
    """

    def __init__(
        self,
        student: Path,
        teacher: Path,
        output: Path,
        swapped: tuple[int, ...],
        settings: DistillSettings,
        device: torch.device,
        data: tuple[str, ...],
        data_tokens: int | None,
        rows: Path | None = None,
    ) -> None:
        assert settings.tokens is not None
        self._student, self._teacher, self._output = student, teacher, output
        self._swapped, self._settings, self._device = swapped, settings, device
        self._data, self._ranks = data, join(device)
        for option, count in (
            ("--batch-size", settings.batch_size),
            ("--validation", settings.validation),
        ):
            if count % self._ranks.size:
                raise InputError(
                    f"{option} {count}: give a multiple of {self._ranks.size} processes"
                )
        needed = max(settings.steps(name) for name in settings.stages) * settings.batch_size
        wanted = (needed + settings.validation) * settings.seq_len
        self._data_tokens = wanted if data_tokens is None else data_tokens
        self._work = output.with_name(f"{output.name}.distill")
        self._state = self._work / "state.safetensors"
        self._metrics = self._work / "metrics.jsonl"
        self._rows = rows or self._work / "data"
        self._fp8_layers: tuple[str, ...] = ()
        if settings.fp8 is not None:
            self._fp8_layers = fp8_layers(student, settings.fp8, settings.keep_bf16)

    def describe(self) -> DistillResult:
        """Return what would be done."""
        with CheckpointReader(self._student) as reader:
            shapes = parameter_shapes(read_config(reader)[1])
        prefixes = tuple(f"model.blocks.{index}.mixer." for index in self._swapped)
        everything = self._settings.train == "all"
        trained = sum(
            torch.Size(shape).numel()
            for name, shape in shapes.items()
            if everything or name.startswith(prefixes)
        )
        return DistillResult(
            student=self._student,
            teacher=self._teacher,
            output=self._output,
            swapped=self._swapped,
            trained=trained,
            fp8_layers=len(self._fp8_layers),
            shared=0,
            rows=0,
            validation_rows=0,
            steps={name: self._settings.steps(name) for name in self._settings.stages},
            stages=(),
            dry_run=True,
        )

    def claim(self, *, resume: bool, force: bool) -> None:
        """Make the working directory this run's own, or find it so.

        Raises:
            InputError: it belongs to another run, or to this one, which is not to be resumed.
        """
        if self._ranks.first:
            claim(self._work, self._identity(), resume=resume, force=force)
        self._ranks.wait()

    def abandon(self) -> None:
        """Remove the working directory, unless there is something in it to go on from."""
        if self._ranks.first and not self._state.exists():
            remove(self._work)

    def train(self, save_every: int, *, force: bool) -> DistillResult:
        """Do all stages, write the output, and remove the working directory."""
        dataset = self._load_dataset()
        pair = load_pair(
            self._student,
            self._teacher,
            self._swapped,
            train=self._settings.train,
            device=self._device,
            dtype=getattr(torch, self._settings.dtype),
            share=self._settings.fp8 is None,  # the teacher is not rounded
        )
        if self._settings.fp8 is not None:
            train_in_fp8(pair.student, self._fp8_layers, self._settings.fp8)
        shared = _shared(pair)
        cached = self._written_down(pair, dataset)
        shard(pair, self._ranks, self._device)
        if self._settings.gradient_checkpointing:
            pair.student.activation_checkpointing_enable()
            pair.student.train()
        everything = pair.mixers() | pair.parameters(self._settings.train)
        progress, saved = self._resumed()
        with torch.no_grad():
            for name, parameter in everything.items():
                if f"parameter.{name}" in saved:
                    parameter.copy_(like(saved[f"parameter.{name}"], parameter))
        for place, name in enumerate(self._settings.stages):
            if place < progress.stage:
                continue
            stage = make_stage(name, pair, self._settings)
            if isinstance(stage, KL) and cached is not None:
                stage.cached = cached
                if place == len(self._settings.stages) - 1:
                    pair.teacher = None  # nothing needs it any more
            loop = Loop(
                name,
                stage,
                self._settings,
                dataset,
                progress,
                self._metrics,
                self._device,
                self._ranks,
            )
            loop.restore(saved)
            saved = {}

            def save(loop: Loop | None = loop) -> None:
                named = {f"parameter.{n}": gather(p) for n, p in everything.items()}
                more = {} if loop is None else loop.tensors()
                if self._ranks.first:
                    save_state(self._state, progress, named | more)

            loop.run(save, save_every)
            progress.results.append(_result(name, progress, self._settings))
            progress.next_stage()
            save(None)
        result = self._result(pair, shared, dataset, progress)
        parameters = {name: gather(p) for name, p in pair.student.named_parameters()}
        if self._ranks.first:
            self._write(parameters, result, force)
            remove(self._work)
        self._ranks.wait()
        return result

    def _load_dataset(self) -> tuple[PackedDataset, PackedDataset]:
        settings = self._settings
        if not self._ranks.first:  # the first one reads or samples, and leaves it for the others
            self._ranks.wait()
        dataset = load_packed_dataset(
            self._data,
            model=self._teacher,
            length=settings.seq_len,
            tokens=self._data_tokens,
            seed=settings.seed,
            device=self._device,
            dtype=getattr(torch, settings.dtype),
            cache=self._rows,
        )
        if self._ranks.first:
            self._ranks.wait()
        if len(dataset) <= settings.validation:
            raise InputError(
                f"--data {' '.join(self._data)}: {len(dataset)} rows of {dataset.length} tokens, "
                f"of which {settings.validation} are held out; give more text or lower --validation"
            )
        return dataset.split(settings.validation)

    def _written_down(
        self, pair: Pair, dataset: tuple[PackedDataset, PackedDataset]
    ) -> TeacherCache | None:
        """Ask the teacher about all rows once and for all, if that is wanted."""
        if not self._settings.cache_teacher:
            return None
        cache = TeacherCache(self._work / "teacher", self._settings.cache_teacher)
        if self._ranks.first:
            assert pair.teacher is not None
            ids = torch.cat([part.ids for part in dataset])
            cache.fill(
                pair.teacher, PackedDataset(ids, torch.cat([part.seq_idx for part in dataset]))
            )
        self._ranks.wait()
        return cache

    def _resumed(self) -> tuple[Progress, dict[str, torch.Tensor]]:
        found = load_state(self._state) if self._state.exists() else (Progress(), {})
        if self._ranks.first:  # lines that are there already belong to steps that were lost
            keep_metrics(self._metrics, found[0].lines)
        self._ranks.wait()
        return found

    def _result(
        self,
        pair: Pair,
        shared: int,
        dataset: tuple[PackedDataset, PackedDataset],
        progress: Progress,
    ) -> DistillResult:
        trained = pair.parameters(self._settings.train).values()
        return DistillResult(
            student=self._student,
            teacher=self._teacher,
            output=self._output,
            swapped=self._swapped,
            trained=sum(parameter.numel() for parameter in trained),
            fp8_layers=len(self._fp8_layers),
            shared=shared,
            rows=len(dataset[0]),
            validation_rows=len(dataset[1]),
            steps={name: self._settings.steps(name) for name in self._settings.stages},
            stages=tuple(StageResult(**values) for values in progress.results),
            dry_run=False,
        )

    def _write(
        self, parameters: dict[str, torch.Tensor], result: DistillResult, force: bool
    ) -> None:
        metrics = self._metrics.read_text("utf-8")
        figures = result.to_dict()
        save_model(
            parameters,
            self._output,
            like=self._student,
            force=force,
            step={
                "command": "distill",
                "options": self._settings.to_dict() | {"data": [Path(d).name for d in self._data]},
                "seed": self._settings.seed,
                "teacher": self._teacher.name,
                "metrics": {key: figures[key] for key in ("trained", "rows", "steps", "stages")},
            },
            extra_files={"distill.jsonl": metrics, "distill.png": draw_losses(metrics)},
        )

    def _identity(self) -> dict[str, Any]:
        """Return everything that decides the result."""
        hashes = {}
        for role, directory in (("student", self._student), ("teacher", self._teacher)):
            with CheckpointReader(directory) as reader:
                hashes[role] = reader.sha256()
        return {
            **hashes,
            "data": list(self._data),
            "data_tokens": self._data_tokens,
            "settings": json.loads(json.dumps(self._settings.to_dict())),
        }


def _shared(pair: Pair) -> int:
    assert pair.teacher is not None
    theirs = {id(parameter) for parameter in pair.teacher.parameters()}
    return sum(p.numel() for p in pair.student.parameters() if id(p) in theirs)


def _result(name: str, progress: Progress, settings: DistillSettings) -> dict[str, Any]:
    losses = [loss for _, loss in progress.validation]
    return {
        "stage": name,
        "steps": progress.step,
        "tokens": progress.step * settings.batch_size * settings.seq_len,
        "skipped": progress.skipped,
        "loss_first": progress.losses[0] if progress.losses else None,
        "loss_last": progress.losses[-1] if progress.losses else None,
        "validation_before": losses[0],
        "validation_after": min(losses) if settings.patience else losses[-1],
        "seconds": progress.seconds,
    }
