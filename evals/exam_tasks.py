"""Build the tasks of MMLU from an exam's files instead of from the hub.

Prompts, few-shot sampler, categories and weights are those of lm-eval's task files; only the
documents differ. lm-eval asks the same questions in two forms: ``mmlu`` shows the choices, and the
model answers with a letter; ``mmlu_continuation`` does not show them, and the model scores the text
of each choice as the continuation of the question.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
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

CUSTOM_ALIAS = "custom subjects"


@dataclass(frozen=True)
class _Form:
    """One of the forms in which lm-eval asks MMLU's questions.

    Attributes:
        group: the group of all subjects.
        suffix: the end of the names of its tasks.
    """

    group: str
    suffix: str

    @property
    def custom_group(self) -> str:
        """The group of the subjects that MMLU does not have."""
        return f"mmlu_custom{self.suffix}"

    def task(self, subject: str) -> str:
        """Return the name of a subject's task."""
        return f"mmlu_{subject}{self.suffix}"


_CONTINUATION = "_continuation"
_FORMS = (_Form("mmlu", ""), _Form(f"mmlu{_CONTINUATION}", _CONTINUATION))


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
        return name in self._index or name in self._custom_groups or name in self._subjects

    def build(self, name: str) -> list[Task | Group]:
        """Build the task or group called ``name``, or the tasks of the tag of that name."""
        built = list(self._build(name))
        if not built:
            names = [subject for subject, form in self._subjects.values() if form == _FORMS[0]]
            raise InputError(
                f"`tasks={name}`: {self._directory} has no subject of this task; "
                f"it has {', '.join(names)}"
            )
        return built

    @cached_property
    def _custom_groups(self) -> dict[str, _Form]:
        return {form.custom_group: form for form in _FORMS}

    @cached_property
    def _subjects(self) -> dict[str, tuple[str, _Form]]:
        """The name and the form of each subject, by the name of its task."""
        names = list_subjects(self._directory)
        for name in names:
            task = _FORMS[0].task(name)
            is_category = task in self._index and not self._is_subject(task)
            if is_category or task in self._custom_groups or name.endswith(_CONTINUATION):
                raise InputError(
                    f"{self._directory}: the subject name {name!r} is also that of a category of "
                    "MMLU or of a form of it; rename its files"
                )
        return {form.task(name): (name, form) for form in _FORMS for name in names}

    def _is_subject(self, task: str) -> bool:
        """Return whether lm-eval has this task and it is a subject, not a category."""
        entry = self._index.get(task)
        return entry is not None and entry.cfg is not None and "dataset_name" in entry.cfg

    def _build(self, name: str) -> Iterator[Task | Group]:
        if name in self._custom_groups:
            form = self._custom_groups[name]
            custom = [
                task
                for task, (_, its_form) in self._subjects.items()
                if its_form == form and not self._is_subject(task)
            ]
            # The same settings as MMLU's own categories have.
            config = {**self._index["mmlu_stem"].cfg, "group_alias": CUSTOM_ALIAS, "task": custom}
            yield from self._group(name, config)
        elif name in self._subjects:
            yield self._task(name)
        elif (entry := self._index[name]).cfg is None:  # a tag of several tasks
            for task in sorted(entry.tags):
                yield from self._build(task)
        elif "group" in entry.cfg:
            members = list(entry.cfg["task"])
            members += [form.custom_group for form in _FORMS if form.group == name]
            yield from self._group(name, {**entry.cfg, "task": members})

    def _group(self, name: str, config: dict[str, Any]) -> Iterator[Group]:
        children = [child for member in config["task"] for child in self._member(member, name)]
        if not children:
            return
        if name in {form.group for form in _FORMS} and self.exam_name != MMLU:
            alias = config.get("group_alias", name).replace("mmlu", self.exam_name, 1)
            config = {**config, "group_alias": alias}
        known = {entry.name for entry in fields(GroupConfig)}
        group = Group.from_config(
            copy.deepcopy({key: config[key] for key in config if key in known} | {"group": name})
        )
        for child in children:
            group.add(child)
        yield group

    def _member(self, member: str | dict[str, Any], group: str) -> Iterator[Task | Group]:
        """Build a member of a group: a name, or the configuration of a group without a file."""
        if isinstance(member, str):
            yield from self._build(member)
        else:  # lm-eval names it in the same way
            yield from self._group(f"{group}::{member['group']}", member)

    def _task(self, task: str) -> Task:
        name, form = self._subjects[task]
        subject = read_subject(self._directory, name)
        if len(subject.dev) < self._shots:
            raise InputError(
                f"{self._directory}/dev/{subject.name}_dev.csv: {len(subject.dev)} questions are "
                f"too few for {self._shots} shots; add some or lower `num_fewshot`"
            )
        self._built.append(subject)
        return InMemoryTask(self._config(task, subject.name, form), documents(subject))

    def _config(self, task: str, subject: str, form: _Form) -> dict[str, Any]:
        if self._is_subject(task):
            config = copy.deepcopy(self._index[task].cfg)
        else:
            # The configurations of all subjects differ only in the entries that are set here.
            config = copy.deepcopy(self._index[form.task("anatomy")].cfg)
            title = subject.replace("_", " ")
            config |= {
                "task": task,
                "task_alias": subject,
                "dataset_name": subject,
                "description": config["description"].replace("anatomy", title),
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
