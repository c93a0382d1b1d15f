"""The steps of a distillation, from its text and models to its output."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.provenance import hub_commit, source_name
from hybridize.checkpoints.save import save_model, stored_parameters
from hybridize.compress.distill.cache_files import fingerprint
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.distributed import Ranks, WholeParameters, join
from hybridize.compress.distill.fp8 import fp8_layers, train_in_fp8
from hybridize.compress.distill.loss_mask import check_mask
from hybridize.compress.distill.loss_plot import draw_losses
from hybridize.compress.distill.pair import Pair, load_pair
from hybridize.compress.distill.results import DistillResult, StageResult
from hybridize.compress.distill.saved_states import SavedStates
from hybridize.compress.distill.sharded_pair import load_sharded_pair
from hybridize.compress.distill.stages import STAGES, make_stage
from hybridize.compress.distill.teacher_caches import TeacherCaches, plan_caches
from hybridize.compress.distill.trainer import Trainer
from hybridize.compress.distill.trainer_state import TrainerState, truncate_metrics
from hybridize.compress.workdir import claim, remove, work_directory
from hybridize.console import console
from hybridize.data.load_text import load_training_text
from hybridize.data.packing import PackedDataset
from hybridize.data.rows import RowOptions
from hybridize.errors import InputError
from hybridize.interrupts import tail, uninterrupted
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.model_spec import parameter_shapes

Datasets = tuple[PackedDataset, PackedDataset]
"""The training sequences and the validation sequences."""


class DistillPipeline:
    """Loads the text and both models, trains stage by stage, and writes the output.

    Args:
        student, teacher, output: directories.
        swapped: the indices of the student's blocks that replaced attention.
        config: the options.
        device: where to compute.
        data_cache: a directory that keeps the packed text. Several runs may share one. None: the
            directory of the option ``cache_dir``, or the run's working directory.

    Raises:
        InputError: an option does not fit the checkpoint or the number of processes.
    """

    def __init__(
        self,
        student: Path,
        teacher: Path,
        output: Path,
        swapped: tuple[int, ...],
        config: DistillConfig,
        device: torch.device,
        data_cache: Path | None = None,
    ) -> None:
        self._student, self._teacher, self._output = student, teacher, output
        self._swapped, self._config, self._device = swapped, config, device
        self._ranks = join(device)
        if config.optimizer == "muon":
            check_muon(self._ranks)
        if config.cache_blocks is not None and self._ranks.size > 1:
            raise InputError("`cache_blocks` needs a single process; leave it out")
        steps = max(config.steps_of(name) for name in config.stages)
        sequences = steps * config.sequences_per_step + config.validation_sequences
        self._data_tokens = config.data_tokens or sequences * config.seq_len
        self.work = work_directory(output, "distill")
        self._metrics = self.work / "metrics.jsonl"
        self._cache = self.work if config.cache_dir is None else Path(config.cache_dir)
        self._data_cache = data_cache or self._cache / "data"
        self._fp8_layers: tuple[str, ...] = ()
        if config.fp8 is not None:
            self._fp8_layers = fp8_layers(student, config.fp8, config.keep_bf16)

    def describe(self) -> DistillResult:
        """Return the result of a dry run: sizes and steps, but no losses."""
        with CheckpointReader(self._student) as reader:
            shapes = parameter_shapes(read_config(reader)[1])
        prefixes = tuple(f"model.blocks.{index}.mixer." for index in self._swapped)
        train_all = self._config.train == "all"
        trained = sum(
            torch.Size(shape).numel()
            for name, shape in shapes.items()
            if train_all or name.startswith(prefixes)
        )
        return self._result(trained=trained, dry_run=True)

    def claim(self) -> None:
        """Create the working directory, or check that an interrupted run can be continued.

        Raises:
            InputError: the directory belongs to another run, or ``resume`` is needed.
        """
        config = self._config

        def claim_it() -> None:
            _make_directory(config.cache_dir)
            claim(self.work, self._identity(), resume=config.resume, force=config.force)

        self._ranks.on_first(claim_it)
        shared = self._ranks.same(str(self.work.resolve()))
        if not self._ranks.all_agree([self.work.exists()])[0]:
            raise InputError(
                f"{shared}: is not there in all processes; run them in the same directory, and "
                "several machines on a file system that they share"
            )

    def abandon(self) -> None:
        """Delete the working directory, unless it contains a state to resume from."""
        if self._ranks.first and SavedStates(self.work, self._ranks).newest() is None:
            remove(self.work)

    def run(self) -> DistillResult:
        """Train all stages, write the output, and delete the working directory.

        Only the first process of several prints messages and progress.
        """
        with nullcontext() if self._ranks.first else console.silence():
            return self._run()

    def _run(self) -> DistillResult:
        datasets = self._load_datasets()
        pair = self._load_pair()
        shared = _count_shared(pair)
        caches = self._fill_caches(pair, datasets)
        if self._config.gradient_checkpointing:
            pair.checkpoint_activations()
        state = self._train_stages(pair, datasets, caches)
        result = self._result(
            trained=sum(p.numel() for p in pair.parameters(self._config.train).values()),
            shared=shared,
            datasets=datasets,
            stages=tuple(StageResult(**values) for values in state.results),
        )
        parameters = WholeParameters(dict(pair.student.named_parameters()))
        if self._ranks.first:
            with tail():
                self._write(parameters, result)
                remove(self.work)
        else:
            for name in stored_parameters(self._student):  # takes part in gathering them
                parameters[name]
        self._ranks.wait()
        return result

    def _load_datasets(self) -> Datasets:
        config, loaded = self._config, list[Datasets]()

        def load() -> None:
            datasets = load_training_text(
                config.data,
                model=self._teacher,
                length=config.seq_len,
                tokens=self._data_tokens,
                held_out=config.validation_sequences,
                cache=self._data_cache,
                record=self.work / "text.key",
                seed=config.seed,
                device=self._device,
                dtype=getattr(torch, config.dtype),
                rows=RowOptions(config.data_column, config.loss_on, config.skip_bad_rows),
            )
            check_mask(*datasets, config.loss_on)
            loaded.append(datasets)

        self._ranks.on_first(load)  # fills the cache; the others read it
        if not loaded:
            load()
        return loaded[0]

    def _load_pair(self) -> Pair:
        config = self._config
        options: dict[str, Any] = {
            "train": config.train,
            "device": self._device,
            "dtype": getattr(torch, config.dtype),
            "share": config.fp8 is None,  # only the student's layers compute in FP8
            "prepare": self._compute_in_fp8,
        }
        paths = (self._student, self._teacher, self._swapped)
        if self._ranks.size > 1:
            return load_sharded_pair(*paths, ranks=self._ranks, **options)
        return load_pair(*paths, **options)

    def _compute_in_fp8(self, student: HybridForCausalLM) -> None:
        if self._config.fp8 is not None:
            train_in_fp8(student, self._fp8_layers, self._config.fp8)

    def _fill_caches(self, pair: Pair, datasets: Datasets) -> TeacherCaches:
        """Store what the options ask for, as far as it is not stored yet."""
        config = self._config
        if not config.cache_teacher and config.cache_blocks is None:
            return TeacherCaches()
        key = fingerprint(self._teacher, config.dtype)
        caches = plan_caches(config, pair, datasets, self._cache / "teacher", key)
        caches.fill(pair, self._ranks)
        return caches

    def _train_stages(self, pair: Pair, datasets: Datasets, caches: TeacherCaches) -> TrainerState:
        """Train the stages that are left, starting from the saved state if there is one."""
        config = self._config
        trained = pair.mixers() | pair.parameters(config.train)

        def parameters() -> dict[str, torch.Tensor]:
            # FSDP2 may replace the local tensor of a parameter, so they are looked up each time.
            return {f"parameter.{name}": value.detach() for name, value in trained.items()}

        states = SavedStates(self.work, self._ranks)
        state = states.load_progress()
        states.load(parameters())
        self._drop_later_metrics(state)
        resumed = state.step > 0
        for index in range(state.stage_index, len(config.stages)):
            name = config.stages[index]
            cached = caches.predictions is not None
            if not any(STAGES[later].runs_teacher(cached) for later in config.stages[index:]):
                pair.teacher = None
            trainer = Trainer(
                name,
                make_stage(name, pair, config, caches),
                config,
                datasets,
                state,
                self._metrics,
                self._device,
                self._ranks,
            )
            if resumed:
                trainer.restore(states)
                resumed = False
            trainer.train(lambda tensors: states.save(state, parameters() | tensors))
            with uninterrupted():
                state.results.append(_stage_result(name, state, config))
                state.start_next_stage()
                states.save(state, parameters())
        return state

    def _drop_later_metrics(self, state: TrainerState) -> None:
        """Drop the lines of steps after the last save."""
        if self._ranks.first:
            truncate_metrics(self._metrics, state.metrics_lines)
        self._ranks.wait()

    def _result(
        self,
        *,
        trained: int,
        shared: int = 0,
        datasets: Datasets | None = None,
        stages: tuple[StageResult, ...] = (),
        dry_run: bool = False,
    ) -> DistillResult:
        return DistillResult(
            student=self._student,
            teacher=self._teacher,
            output=self._output,
            swapped=self._swapped,
            trained=trained,
            fp8_layers=len(self._fp8_layers),
            shared=shared,
            training_sequences=0 if datasets is None else len(datasets[0]),
            validation_sequences=0 if datasets is None else len(datasets[1]),
            steps={name: self._config.steps_of(name) for name in self._config.stages},
            stages=stages,
            dry_run=dry_run,
        )

    def _write(self, parameters: WholeParameters, result: DistillResult) -> None:
        metrics = self._metrics.read_text("utf-8")
        figures, commit = result.to_dict(), hub_commit(self._teacher)
        recorded = ("trained", "training_sequences", "steps", "stages")
        save_model(
            parameters,
            self._output,
            like=self._student,
            force=self._config.force,
            record={
                "command": "distill",
                "options": self._config.record(),
                "seed": self._config.seed,
                "teacher": source_name(self._teacher),
                **({} if commit is None else {"teacher_revision": commit[1]}),
                "metrics": {key: figures[key] for key in recorded},
            },
            extra_files={"distill.jsonl": metrics, "distill.png": draw_losses(metrics)},
        )

    def _identity(self) -> dict[str, Any]:
        """Return everything that must not change when an interrupted run is resumed."""
        hashes = {}
        directories = {"student": self._student, "teacher": self._teacher}
        with console.progress("hashing weights", len(directories), "checkpoints") as progress:
            for role, directory in directories.items():
                with CheckpointReader(directory) as reader:
                    hashes[role] = reader.sha256()
                progress.advance()
        return self._config.identity() | hashes | {"data_tokens": self._data_tokens}


def check_muon(ranks: Ranks) -> None:
    """Check that torch has Muon, and that it gets whole matrices.

    Raises:
        InputError: Muon cannot be used.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError("`optimizer=muon` needs torch 2.9 or newer; update it, or choose adamw")
    if ranks.size > 1:
        raise InputError(
            "`optimizer=muon` needs a single process, because it updates whole matrices; choose "
            "`optimizer=adamw`"
        )


def _make_directory(path: str | None) -> None:
    """Create the directory of the option ``cache_dir``, if there is one.

    Raises:
        InputError: it cannot be created.
    """
    if path is None:
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`cache_dir={path}`: cannot be created: {error.strerror}") from error


def _count_shared(pair: Pair) -> int:
    """Return the number of parameters that both models share in memory."""
    assert pair.teacher is not None
    theirs = {id(parameter) for parameter in pair.teacher.parameters()}
    return sum(p.numel() for p in pair.student.parameters() if id(p) in theirs)


def _stage_result(name: str, state: TrainerState, config: DistillConfig) -> dict[str, Any]:
    losses = dict(state.validation)
    watched = dict(state.perplexities if config.eval_every else state.validation)
    last = min(watched, key=watched.__getitem__) if config.patience else max(watched)
    return {
        "stage": name,
        "steps": state.step,
        "tokens": state.step * config.sequences_per_step * config.seq_len,
        "skipped": state.skipped,
        "loss_first": state.losses[0] if state.losses else None,
        "loss_last": state.losses[-1] if state.losses else None,
        "validation_before": losses[0],
        "validation_after": losses[last],
        "seconds": state.seconds,
        "perplexity_before": watched[0] if config.eval_every else None,
        "perplexity_after": watched[last] if config.eval_every else None,
    }
