"""The tasks of an evaluation, as lm-eval's own objects.

MMLU's prompts, few-shot sampler, categories and weights are those of lm-eval's task files; where
the questions come from local files, only the source of the documents is another.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from hybridize.errors import HybridizeError, InputError
from hybridize.evals.exam import Question, Subject, list_subjects, read_subject
from hybridize.evals.local_task import LocalTask
from hybridize.evals.recall_tasks import build_recall, is_recall

MMLU_SHOTS = 5  # as in the benchmark's paper; lm-eval's task files leave it open

# Where subjects go that MMLU does not have.
CUSTOM_GROUP = "mmlu_custom"
CUSTOM_ALIAS = "custom subjects"


@dataclass(frozen=True)
class TaskSelection:
    """What `lm_eval.simple_evaluate` is to run.

    Attributes:
        tasks: tasks and groups of tasks.
        manager: the index of tasks that lm-eval wants to have at hand.
    """

    tasks: list[Task | Group]
    manager: TaskManager = field(repr=False)


def select_tasks(
    names: Sequence[str], *, mmlu_dir: Path | None = None, num_fewshot: int | None = None
) -> TaskSelection:
    """Build the named tasks.

    Args:
        names: lm-eval's names of tasks, groups or tags, or those of `recall_tasks`.
        mmlu_dir: an exam in MMLU's layout that takes the place of MMLU's questions on the hub.
        num_fewshot: shots in each prompt; if None, 5 for MMLU and each other task's own.

    Raises:
        InputError: a name is unknown, two names overlap, or ``mmlu_dir`` is not as it should be.
        HybridizeError: a task's data cannot be fetched from the hub.
    """
    names = list(dict.fromkeys(names))
    mmlu = _mmlu_index()
    exam = _LocalMMLU(mmlu, mmlu_dir, num_fewshot) if mmlu_dir else None
    local = [name for name in names if exam and exam.has(name)]
    if exam and not local:
        raise InputError(
            f"--mmlu-dir {mmlu_dir}: no task of --tasks {','.join(names)} is part of it; "
            "add mmlu to --tasks or leave the directory out"
        )
    distant = [name for name in names if name not in local and not is_recall(name)]
    # The index of all tasks takes lm-eval seconds to read; that of MMLU does not.
    manager = mmlu if all(name in mmlu.task_index for name in distant) else TaskManager()
    _check_names(distant, manager)

    built: list[Task | Group] = []
    for name in names:
        if exam and name in local:
            built += exam.build(name)
        else:
            built += build_recall(name) if is_recall(name) else _fetch(name, manager)
    try:
        leaves = manager.load(built)["tasks"]
    except ValueError as error:  # a task that two names bring in
        raise InputError(f"--tasks {','.join(names)}: {error}") from error
    _check_kinds(leaves)
    for name, task in leaves.items():
        if name in mmlu.task_index and task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", MMLU_SHOTS)
    return TaskSelection(built, manager)


def _mmlu_index() -> TaskManager:
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return TaskManager(include_path=folder, include_defaults=False)


def _check_names(names: Sequence[str], manager: TaskManager) -> None:
    for name in names:
        # A name only: lm-eval also takes paths of task files, which may bring code along.
        if name not in manager.task_index:
            near = get_close_matches(name, manager.all_tasks, n=5) or ["mmlu"]
            raise InputError(
                f"--tasks {name}: lm-eval has no such task; near matches: {', '.join(near)}"
            )


def _check_kinds(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"--tasks {name}: runs programs that the model writes, which hybridize does not; "
                "use lm-eval itself, inside a sandbox"
            )
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"--tasks {name}: asks about images or sound, not text alone")


def _fetch(name: str, manager: TaskManager) -> list[Task | Group]:
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever the hub, the network or the task's own code raises
        first_line = str(error).strip().partition("\n")[0]
        offline = "; --mmlu-dir DIR reads MMLU from local files" if name.startswith("mmlu") else ""
        raise HybridizeError(
            f"--tasks {name}: its data cannot be loaded: {type(error).__name__}: "
            f"{first_line}{offline}"
        ) from error
    groups = loaded["groups"]
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


class _LocalMMLU:
    """Builds the tasks and groups of MMLU from an exam's files."""

    def __init__(self, manager: TaskManager, directory: Path, num_fewshot: int | None) -> None:
        self._index = manager.task_index
        self._directory = directory
        self._shots = MMLU_SHOTS if num_fewshot is None else num_fewshot

    @cached_property
    def _subjects(self) -> dict[str, str]:
        """Task name -> subject, for every subject of the exam."""
        subjects = {f"mmlu_{name}": name for name in list_subjects(self._directory)}
        for task, name in subjects.items():
            if task == CUSTOM_GROUP or (task in self._index and not self._is_known(task)):
                raise InputError(
                    f"{self._directory}: the subject name {name!r} is that of a category of MMLU; "
                    "rename its files"
                )
        return subjects

    def _is_known(self, task: str) -> bool:
        entry = self._index.get(task)
        return entry is not None and entry.cfg is not None and "dataset_name" in entry.cfg

    def has(self, name: str) -> bool:
        """Say whether ``name`` is MMLU, a part of it, or a subject of the exam."""
        return name in self._index or name == CUSTOM_GROUP or name in self._subjects

    def build(self, name: str) -> list[Task | Group]:
        """Build the task or group called ``name``, or the tasks of the tag of that name."""
        built = list(self._build(name))
        if not built:
            raise InputError(
                f"--tasks {name}: {self._directory} holds no subject of it; "
                f"it holds {', '.join(self._subjects.values())}"
            )
        return built

    def _build(self, name: str) -> Iterator[Task | Group]:
        if name == CUSTOM_GROUP:
            custom = [task for task in self._subjects if not self._is_known(task)]
            # As MMLU's own categories are, but for its name and members.
            config = {**self._index["mmlu_stem"].cfg, "group_alias": CUSTOM_ALIAS, "task": custom}
            yield from self._group(CUSTOM_GROUP, config)
        elif name in self._subjects:
            yield self._task(name)
        elif (entry := self._index[name]).cfg is None:  # a tag, which stands for its tasks
            for task in sorted(entry.tags):
                yield from self._build(task)
        elif "group" in entry.cfg:
            members = list(entry.cfg["task"])
            if name == "mmlu":
                members.append(CUSTOM_GROUP)
            yield from self._group(name, {**entry.cfg, "task": members})

    def _group(self, name: str, config: dict[str, Any]) -> Iterator[Group]:
        known = {entry.name for entry in fields(GroupConfig)}
        group = Group.from_config(
            copy.deepcopy({key: config[key] for key in config if key in known} | {"group": name})
        )
        for member in config["task"]:
            for child in self._build(member):
                group.add(child)
        if len(group):
            yield group

    def _task(self, task: str) -> Task:
        subject = read_subject(self._directory, self._subjects[task])
        if len(subject.dev) < self._shots:
            raise InputError(
                f"{self._directory}/dev/{subject.name}_dev.csv: {len(subject.dev)} questions are "
                f"too few for {self._shots} shots; add some or lower --num-fewshot"
            )
        return LocalTask(self._config(task, subject.name), _documents(subject))

    def _config(self, task: str, subject: str) -> dict[str, Any]:
        if self._is_known(task):
            config = copy.deepcopy(self._index[task].cfg)
        else:
            title = subject.replace("_", " ")
            # Any subject's will do: they differ in these entries alone.
            config = copy.deepcopy(self._index["mmlu_anatomy"].cfg) | {
                "task": task,
                "task_alias": subject,
                "dataset_name": subject,
                "description": "The following are multiple choice questions (with answers) about "
                f"{title}.\n\n",
                "num_fewshot": MMLU_SHOTS,
            }
        config.pop("tag")  # not part of a single task's configuration
        config["dataset_path"] = str(self._directory)
        return config


def _documents(subject: Subject) -> datasets.DatasetDict:
    """Return the questions in the shape of the hub's ``cais/mmlu``."""
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list([_document(question) for question in questions])
            for split, questions in (("dev", subject.dev), ("test", subject.test))
        }
    )


def _document(question: Question) -> dict[str, Any]:
    return {
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
    }
