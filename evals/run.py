"""Evaluate checkpoints: lm-eval's tasks, MMLU from local files, perplexity, recovery."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.checkpoints.hub import resolve
from hybridize.errors import InputError
from hybridize.evals.compare import compare
from hybridize.evals.extra import require_eval_extra
from hybridize.evals.output import check_output, write_results
from hybridize.evals.results import (
    EvaluationResult,
    ModelResult,
    Perplexity,
    read_metrics,
    read_scores,
)

if TYPE_CHECKING:
    import torch

    from hybridize.evals.adapter import HarnessModel
    from hybridize.evals.models import Backend
    from hybridize.evals.tasks import TaskSelection
    from hybridize.modeling.cache.compact import CacheFormat

DEFAULT_TASKS = ("mmlu",)
BACKENDS = ("hybridize", "transformers")

# The logits of a whole window are held at once, so a model that takes 128k tokens gets these.
PERPLEXITY_WINDOW = 4096


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    tasks: Sequence[str] | None = None,
    mmlu_dir: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    perplexity: str | Path | None = None,
    baseline: str | Path | None = None,
    output: str | Path | None = None,
    force: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: "Backend" = "hybridize",
    seed: int | None = None,
    kv_cache_dtype: str = "auto",
    ssm_cache_dtype: str = "auto",
) -> EvaluationResult:
    """Measure accuracy and perplexity of checkpoints with lm-eval.

    Args:
        models: checkpoint directories or ids on the hub.
        tasks: names of lm-eval's tasks, groups or tags, or ``recall`` and its parts; if None,
            ``mmlu``, or nothing where only ``perplexity`` is asked for.
        mmlu_dir: an exam in the layout of MMLU's original files (``dev/SUBJECT_dev.csv`` and
            ``test/SUBJECT_test.csv``), read instead of the copy on the hub. Subjects that MMLU
            does not have are asked in the same way and form the group ``mmlu_custom``.
        num_fewshot: answered questions in each prompt; if None, 5 for MMLU and each other task's
            own.
        limit: ask only the first so many questions of each task (for MMLU, of each subject).
        perplexity: a UTF-8 text file to predict.
        baseline: a checkpoint to compare the others with; evaluated first.
        output: a file for the results, in lm-eval's layout.
        force: replace ``output`` if it exists.
        batch_size: prompts per forward pass.
        max_length: how many tokens the model sees at most; longer prompts lose their beginning.
            If None, what its configuration allows, and for ``perplexity`` at most 4096.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        dtype: of weights and computation; ``"auto"`` is float32 on the CPU and the checkpoint's
            own on a GPU.
        backend: what runs the model: ``"hybridize"``, this package's own model, or
            ``"transformers"``, the class that transformers has for it.
        seed: of whatever a task leaves to chance; if None, the seeds that lm-eval itself uses.
        kv_cache_dtype, ssm_cache_dtype: what the cache is stored in, see `CacheFormat`. Texts are
            then read through the cache, a piece at a time, so that what is stored is what counts.

    Returns:
        Figures per model, the baseline first.

    Raises:
        InputError: an argument or a file is wrong; nothing was written.
        HybridizeError: the evaluation failed.
    """
    _check_numbers(
        limit=(limit, 1),
        num_fewshot=(num_fewshot, 0),
        batch_size=(batch_size, 1),
        max_length=(max_length, 2),
        seed=(seed, 0),
    )
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend}: must be one of {', '.join(BACKENDS)}")
    if tasks is None:
        tasks = () if perplexity is not None and mmlu_dir is None else DEFAULT_TASKS
    if not tasks and perplexity is None:
        raise InputError("--tasks: names no task, and there is no --perplexity FILE either")
    if output is not None:
        check_output(Path(output), force=force)
    text = None if perplexity is None else _Text.read(Path(perplexity))
    directories = _find(models, baseline)
    require_eval_extra()

    from hybridize.evals.harness import compiled_templates, quiet_libraries
    from hybridize.evals.tasks import select_tasks
    from hybridize.modeling.cache.compact import CacheFormat
    from hybridize.modeling.devices import choose_device, choose_dtype

    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    with quiet_libraries(), compiled_templates():
        exam = None if mmlu_dir is None else Path(mmlu_dir)
        evaluation = _Evaluation(
            selection=select_tasks(tasks, mmlu_dir=exam, num_fewshot=num_fewshot)
            if tasks
            else None,
            text=text,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            max_length=max_length,
            device=place,
            dtype=precision,
            backend=backend,
            seed=seed,
            cache_format=CacheFormat(kv_cache_dtype, ssm_cache_dtype),
        )
        results = [evaluation.of(*model) for model in directories.items()]
    if baseline is not None:
        first, *others = results
        results = [first, *(compare(other, first) for other in others)]
    result = EvaluationResult(
        models=tuple(results),
        baseline=None if baseline is None else str(baseline),
        options={
            "tasks": list(tasks),
            "mmlu_dir": None if mmlu_dir is None else str(mmlu_dir),
            "num_fewshot": num_fewshot,
            "limit": limit,
            "perplexity": None if perplexity is None else str(perplexity),
            "batch_size": batch_size,
            "max_length": max_length,
            "backend": backend,
            "seed": seed,
            "kv_cache_dtype": kv_cache_dtype,
            "ssm_cache_dtype": ssm_cache_dtype,
        },
    )
    if output is not None:
        write_results(result, Path(output))
    return result


@dataclass(frozen=True)
class _Text:
    """A text to predict."""

    file: str
    text: str
    bytes: int

    @classmethod
    def read(cls, path: Path) -> "_Text":
        try:
            content = path.read_bytes()
            text = content.decode("utf-8")
        except OSError as error:
            raise InputError(f"--perplexity {path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"--perplexity {path}: not UTF-8 text (byte {error.start}: {error.reason})"
            ) from error
        if not text:
            raise InputError(f"--perplexity {path}: the file is empty")
        return cls(str(path), text, len(content))


@dataclass(frozen=True)
class _Evaluation:
    """What to do with each model."""

    selection: "TaskSelection | None"
    text: _Text | None
    num_fewshot: int | None
    limit: int | None
    batch_size: int
    max_length: int | None
    device: "torch.device"
    dtype: "torch.dtype | None"
    backend: "Backend"
    seed: int | None
    cache_format: "CacheFormat"

    def of(self, name: str, directory: Path) -> ModelResult:
        """Load a model, evaluate it and let go of it."""
        from hybridize.evals.adapter import HarnessModel
        from hybridize.evals.models import load

        start = time.perf_counter()
        model, tokenizer = load(
            directory,
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            cache_format=self.cache_format,
        )
        harness_model = HarnessModel(
            model, tokenizer, batch_size=self.batch_size, max_length=self.max_length
        )
        # First the shorter job, so that a text that cannot be scored does not cost the longer one.
        perplexity = self._predict_text(harness_model)
        results = self._run_tasks(name, harness_model)
        scores = read_scores({"samples": results.pop("samples", {})})
        return ModelResult(
            model=name,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(self.device),
            metrics=read_metrics(results),
            perplexity=perplexity,
            prompts=harness_model.prompts,
            truncated_prompts=harness_model.truncated,
            seconds=time.perf_counter() - start,
            lm_eval=results,
            scores=scores,
        )

    def _run_tasks(self, name: str, model: "HarnessModel") -> dict[str, Any]:
        from hybridize.evals.harness import no_results, run_harness

        model_args = {"pretrained": name, "dtype": str(model.model.dtype).removeprefix("torch.")}
        if self.selection is None:
            return no_results(model_args)
        return run_harness(
            model,
            self.selection,
            source=self.backend,
            model_args=model_args,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            seed=self.seed,
        )

    def _predict_text(self, model: "HarnessModel") -> Perplexity | None:
        if self.text is None:
            return None
        window = self.max_length or min(model.max_length, PERPLEXITY_WINDOW)
        log_likelihood, tokens = model.score_text(self.text.text, window)
        return Perplexity(
            file=self.text.file,
            bytes=self.text.bytes,
            tokens=tokens,
            window=window,
            nats_per_token=-log_likelihood / tokens,
        )


def _find(
    models: str | Path | Sequence[str | Path], baseline: str | Path | None
) -> dict[str, Path]:
    """Return where each model lies, by name, each once and the baseline first.

    All of them, before hours of work on the first.
    """
    given = [models] if isinstance(models, str | Path) else list(models)
    if not given:
        raise InputError("MODEL: name at least one checkpoint to evaluate")
    directories = {}
    for model in given if baseline is None else [baseline, *given]:
        directory = resolve(model)
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory}: has no config.json; name a checkpoint's directory")
        directories[str(model)] = directory
    return directories


def _check_numbers(**options: tuple[int | None, int]) -> None:
    for name, (value, least) in options.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
