"""Build the tasks of an evaluation, as objects of lm-eval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from hybridize.checkpoints.hub_errors import reason_of, unknown_reason
from hybridize.errors import HybridizeError, InputError
from hybridize.evals.exam_tasks import MMLU_SHOTS, ExamTasks
from hybridize.evals.local_tasks import build_local


@dataclass(frozen=True)
class TaskSelection:
    """What `lm_eval.simple_evaluate` runs.

    Attributes:
        tasks: tasks and groups of tasks.
        exam: the name of the exam behind the tasks, see `exam_name`; None if no task asks one.
        manager: the index of tasks, which lm-eval needs too.
    """

    tasks: list[Task | Group]
    exam: str | None
    manager: TaskManager = field(repr=False)


def select_tasks(
    names: Sequence[str], *, mmlu_dir: Path | None = None, num_fewshot: int | None = None
) -> TaskSelection:
    """Build the named tasks.

    Args:
        names: names of tasks, groups or tags of lm-eval, or of `local_tasks`.
        mmlu_dir: an exam in MMLU's layout, which replaces MMLU's questions on the hub.
        num_fewshot: number of solved questions in each prompt; if None, 5 for MMLU and the
            default of each other task.

    Raises:
        InputError: a name is unknown, two names overlap, or ``mmlu_dir`` is wrong.
        HybridizeError: a task's data cannot be fetched from the hub.
    """
    names = list(dict.fromkeys(names))
    mmlu = _mmlu_index()
    exam = ExamTasks(mmlu, mmlu_dir, num_fewshot) if mmlu_dir else None
    from_exam = [name for name in names if exam and exam.has(name)]
    if exam and not from_exam:
        raise InputError(
            f"`mmlu_dir={mmlu_dir}`: none of `tasks={','.join(names)}` is part of this exam; "
            "add mmlu to `tasks`, or leave out `mmlu_dir`"
        )
    found = {name: build_local(name) for name in names}
    local = {name: tasks for name, tasks in found.items() if tasks is not None}
    from_hub = [name for name in names if name not in from_exam and name not in local]
    # lm-eval needs seconds to index all of its tasks, and much less for MMLU alone.
    manager = mmlu if all(name in mmlu.task_index for name in from_hub) else TaskManager()
    _check_names(from_hub, manager)

    built: list[Task | Group] = []
    for name in names:
        if exam and name in from_exam:
            built += exam.build(name)
        else:
            built += local[name] if name in local else _fetch(name, manager)
    try:
        leaves = manager.load(built)["tasks"]
    except ValueError as error:  # two names include the same task
        raise InputError(f"`tasks={','.join(names)}`: {error}") from error
    _check_kinds(leaves)
    for name, task in leaves.items():
        if name in mmlu.task_index and task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", MMLU_SHOTS)
    return TaskSelection(built, exam.exam_name if exam else None, manager)


def _mmlu_index() -> TaskManager:
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu"
    folders = [folder / form for form in ("default", "continuation")]
    return TaskManager(include_path=folders, include_defaults=False)


def _check_names(names: Sequence[str], manager: TaskManager) -> None:
    for name in names:
        # lm-eval also takes paths of task files. Those can contain code, so they are refused.
        if name not in manager.task_index:
            near = get_close_matches(name, manager.all_tasks, n=5) or ["mmlu"]
            raise InputError(
                f"`tasks={name}`: lm-eval has no such task; near matches: {', '.join(near)}"
            )


def _check_kinds(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"`tasks={name}`: this task runs programs that the model writes; hybridize does "
                "not; use lm-eval itself, inside a sandbox"
            )
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"`tasks={name}`: this task needs images or sound, not text alone")


def _fetch(name: str, manager: TaskManager) -> list[Task | Group]:
    try:
        loaded = manager.load([name])
    except Exception as error:  # the hub, the network and the task's own code raise anything
        reason = reason_of(error, "datasets", None, "the data") or unknown_reason(error)
        offline = "; `mmlu_dir` reads MMLU from local files" if name.startswith("mmlu") else ""
        raise HybridizeError(
            f"`tasks={name}`: its data cannot be loaded: {reason.text}{offline}"
        ) from error
    groups = loaded["groups"]
    return [groups[name]] if name in groups else list(loaded["tasks"].values())
