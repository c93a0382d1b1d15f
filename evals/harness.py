"""Run lm-eval: quietly, and with each prompt template compiled once."""

import contextlib
import functools
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import datasets
import lm_eval
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.utils
import transformers
from lm_eval.loggers import EvaluationTracker

from hybridize.console import console
from hybridize.evals.commit import current_commit
from hybridize.evals.harness_model import HarnessModel
from hybridize.evals.tasks import TaskSelection

# What lm-eval's own command starts from: random, numpy, torch, few-shot sampling.
DEFAULT_SEEDS = (0, 1234, 1234, 1234)


def run_harness(
    model: HarnessModel,
    selection: TaskSelection,
    *,
    source: str,
    model_args: dict[str, str],
    num_fewshot: int | None,
    limit: int | None,
    seed: int | None,
) -> dict[str, Any]:
    """Run lm-eval's `simple_evaluate`.

    Args:
        model: what to evaluate.
        selection: on what.
        source: what runs the model, for the record.
        model_args: how the model was loaded, for the record; ``pretrained`` is its name.
        num_fewshot: shots in each prompt; each task's own if None.
        limit: how many questions of each task to ask; all if None.
        seed: of all chance; lm-eval's own seeds if None.

    Returns:
        The results in the layout of lm-eval's results files, and ``samples`` beside them.
    """
    seeds = DEFAULT_SEEDS if seed is None else (seed,) * 4
    tracker = EvaluationTracker()
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=selection.tasks,
        num_fewshot=num_fewshot,
        batch_size=model.batch_size,
        device=str(model.device),
        limit=limit,
        task_manager=selection.manager,
        evaluation_tracker=tracker,
        random_seed=seeds[0],
        numpy_random_seed=seeds[1],
        torch_random_seed=seeds[2],
        fewshot_random_seed=seeds[3],
    )
    tracker.general_config_tracker.model_source = source
    tracker.general_config_tracker.log_end_time()
    results["config"]["model"] = source
    hashes = {task: _hash(samples) for task, samples in results["samples"].items()}
    return {**results, "task_hashes": hashes, **asdict(tracker.general_config_tracker)}


def no_results(model_args: dict[str, str]) -> dict[str, Any]:
    """Return what stands in for lm-eval's results where no task was run."""
    empty = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better")
    return {key: {} for key in empty} | {"config": {"model_args": model_args}}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep stdout for our tables, and stderr for our progress bar.

    Errors still show; bars of downloads do where stderr is a terminal.
    """
    with contextlib.ExitStack() as undo:
        # Tasks that print do so to stderr.
        undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        harness_log = logging.getLogger("lm_eval")
        undo.callback(harness_log.setLevel, harness_log.level)
        harness_log.setLevel(logging.ERROR)
        undo.callback(transformers.logging.set_verbosity, transformers.logging.get_verbosity())
        transformers.logging.set_verbosity_error()
        if console.quiet or not sys.stderr.isatty():
            if not datasets.are_progress_bars_disabled():
                datasets.disable_progress_bars()
                undo.callback(datasets.enable_progress_bars)
            if transformers.logging.is_progress_bar_enabled():
                transformers.logging.disable_progress_bar()
                undo.callback(transformers.logging.enable_progress_bar)
        # One bar per task, which has no switch.
        _replace(undo, lm_eval.api.task, "tqdm", _no_bar)
        # Calls git, which complains on stderr where there is no repository.
        _replace(undo, lm_eval.evaluator, "get_git_commit_hash", current_commit)
        yield


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Let lm-eval compile each template once, not for every question that it fills in.

    Building the 5-shot prompts of all of MMLU takes 2 seconds instead of 100.
    """
    with contextlib.ExitStack() as undo:
        compile_template = functools.lru_cache(maxsize=4096)(lm_eval.utils.env.from_string)
        _replace(undo, lm_eval.utils.env, "from_string", compile_template)
        yield


def _hash(samples: list[dict[str, Any]]) -> str:
    """Return the hash of a task's questions, prompts and answers that lm-eval records."""
    parts = (sample[f"{part}_hash"] for sample in samples for part in ("doc", "prompt", "target"))
    return lm_eval.utils.hash_string("".join(parts))


def _replace(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _no_bar(items: Iterable[Any], **_options: Any) -> Iterable[Any]:
    return items
