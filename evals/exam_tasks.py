"""Build the tasks of MMLU from an exam's files instead of from the hub.

Prompts, few-shot sampler, categories and weights are those of lm-eval's task files; only the
documents differ.
"""

import copy
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from hybridize.errors import InputError
from hybridize.evals.exam import Question, Subject, list_subjects, read_subject
from hybridize.evals.exam_name import MMLU, exam_name
from hybridize.evals.in_memory_task import InMemoryTask

MMLU_SHOTS = 5  # as in the benchmark's paper; lm-eval's task files do not set it

CUSTOM_GROUP = "mmlu_custom"
"""The group of the subjects that MMLU does not have."""

CUSTOM_ALIAS = "custom subjects"


class ExamTasks:
    """The tasks and groups of an exam in MMLU's layout.

    Args:
        manager: lm-eval's index of MMLU's task files.
        directory: the exam.
        num_fewshot: number of solved questions in each prompt; if None, 5.

    Raises:
        InputError: (from every method) the directory has no exam, or a file of the exam is damaged.
    """

    def __init__(self, manager: TaskManager, directory: Path, num_fewshot: int | None) -> None:
        self._index = manager.task_index
        self._directory = directory
        self._shots = MMLU_SHOTS if num_fewshot is None else num_fewshot
        self._built: list[Subject] = []

    @property
    def exam_name(self) -> str:
        """The name of the exam, from the subjects that were built; see `exam_name`."""
        return exam_name(self._directory, self._built)

    def has(self, name: str) -> bool:
        """Return whether ``name`` is MMLU, a part of MMLU, or a subject of the exam."""
        return name in self._index or name == CUSTOM_GROUP or name in self._subjects

    def build(self, name: str) -> list[Task | Group]:
        """Build the task or group called ``name``, or the tasks of the tag of that name."""
        built = list(self._build(name))
        if not built:
            raise InputError(
                f"`tasks={name}`: {self._directory} has no subject of this task; "
                f"it has {', '.join(self._subjects.values())}"
            )
        return built

    @cached_property
    def _subjects(self) -> dict[str, str]:
        """The name of each subject, by the name of its task."""
        subjects = {f"mmlu_{name}": name for name in list_subjects(self._directory)}
        for task, name in subjects.items():
            if task == CUSTOM_GROUP or (task in self._index and not self._is_subject(task)):
                raise InputError(
                    f"{self._directory}: the subject name {name!r} is also that of a category of "
                    "MMLU; "
                    "rename its files"
                )
        return subjects

    def _is_subject(self, task: str) -> bool:
        """Return whether lm-eval has this task and it is a subject, not a category."""
        entry = self._index.get(task)
        return entry is not None and entry.cfg is not None and "dataset_name" in entry.cfg

    def _build(self, name: str) -> Iterator[Task | Group]:
        if name == CUSTOM_GROUP:
            custom = [task for task in self._subjects if not self._is_subject(task)]
            # The same settings as MMLU's own categories have.
            config = {**self._index["mmlu_stem"].cfg, "group_alias": CUSTOM_ALIAS, "task": custom}
            yield from self._group(CUSTOM_GROUP, config)
        elif name in self._subjects:
            yield self._task(name)
        elif (entry := self._index[name]).cfg is None:  # a tag of several tasks
            for task in sorted(entry.tags):
                yield from self._build(task)
        elif "group" in entry.cfg:
            members = list(entry.cfg["task"])
            if name == "mmlu":
                members.append(CUSTOM_GROUP)
            yield from self._group(name, {**entry.cfg, "task": members})

    def _group(self, name: str, config: dict[str, Any]) -> Iterator[Group]:
        children = [child for member in config["task"] for child in self._build(member)]
        if not children:
            return
        if name == "mmlu" and self.exam_name != MMLU:
            config = {**config, "group_alias": self.exam_name}
        known = {entry.name for entry in fields(GroupConfig)}
        group = Group.from_config(
            copy.deepcopy({key: config[key] for key in config if key in known} | {"group": name})
        )
        for child in children:
            group.add(child)
        yield group

    def _task(self, task: str) -> Task:
        subject = read_subject(self._directory, self._subjects[task])
        if len(subject.dev) < self._shots:
            raise InputError(
                f"{self._directory}/dev/{subject.name}_dev.csv: {len(subject.dev)} questions are "
                f"too few for {self._shots} shots; add some or lower `num_fewshot`"
            )
        self._built.append(subject)
        return InMemoryTask(self._config(task, subject.name), documents(subject))

    def _config(self, task: str, subject: str) -> dict[str, Any]:
        if self._is_subject(task):
            config = copy.deepcopy(self._index[task].cfg)
        else:
            title = subject.replace("_", " ")
            # The configurations of all subjects differ only in the entries that are set here.
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


def documents(subject: Subject) -> datasets.DatasetDict:
    """Return the questions in the layout of ``cais/mmlu`` on the hub."""
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
