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
from lm_eval.loggers import EvaluationTracker

from hybridize.checkpoints.stock_model import quiet_transformers
from hybridize.console import console
from hybridize.evals.commit import current_commit
from hybridize.evals.harness_model import HarnessModel
from hybridize.evals.tasks import TaskSelection

# The seeds of lm-eval's own command for random, numpy, torch and the few-shot sampling.
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
        model: the model.
        selection: the tasks.
        source: the name of the backend, for the record.
        model_args: how the model was loaded, for the record; ``pretrained`` is its name.
        num_fewshot: number of solved questions in each prompt; each task's own if None.
        limit: number of questions of each task; all if None.
        seed: the random seed; lm-eval's own seeds if None.

    Returns:
        The results in the layout of lm-eval's results files, with the key ``samples`` added.
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
    """Return empty results in lm-eval's layout, for runs without tasks."""
    empty = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better")
    return {key: {} for key in empty} | {"config": {"model_args": model_args}}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence libraries: they write nothing to stdout, and only errors to stderr.

    On a terminal, progress bars of downloads are still shown.
    """
    with contextlib.ExitStack() as undo:
        # Some tasks print to stdout.
        undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        harness_log = logging.getLogger("lm_eval")
        undo.callback(harness_log.setLevel, harness_log.level)
        harness_log.setLevel(logging.ERROR)
        bars = not console.quiet and sys.stderr.isatty()
        undo.enter_context(quiet_transformers(progress=bars))
        if not bars and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            undo.callback(datasets.enable_progress_bars)
        # lm-eval shows one bar per task and has no option to turn it off.
        _replace(undo, lm_eval.api.task, "tqdm", _no_bar)
        # lm-eval's own function lets git write to stderr outside of a repository.
        _replace(undo, lm_eval.evaluator, "get_git_commit_hash", current_commit)
        yield


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Let lm-eval compile each prompt template once instead of once per question.

    The 5-shot prompts of all of MMLU then take 2 seconds instead of 100.
    """
    with contextlib.ExitStack() as undo:
        compile_template = functools.lru_cache(maxsize=4096)(lm_eval.utils.env.from_string)
        _replace(undo, lm_eval.utils.env, "from_string", compile_template)
        yield


def _hash(samples: list[dict[str, Any]]) -> str:
    """Return lm-eval's hash of a task's questions, prompts and answers."""
    parts = (sample[f"{part}_hash"] for sample in samples for part in ("doc", "prompt", "target"))
    return lm_eval.utils.hash_string("".join(parts))


def _replace(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _no_bar(items: Iterable[Any], **_options: Any) -> Iterable[Any]:
    return items
