"""The recall questions as tasks of lm-eval; they are generated, not downloaded."""

from dataclasses import asdict

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import Task

from hybridize.errors import InputError
from hybridize.evals.in_memory_task import InMemoryTask
from hybridize.evals.recall_questions import DEFAULT_LENGTHS, max_length, parse_name, questions

GROUP = "recall"
KINDS = ("associative", "needle")
"""The kinds in the group ``recall``. The kind ``needles`` asks for the same more cheaply."""


def build_recall(name: str) -> list[Task | Group] | None:
    """Build ``recall``, one of its kinds, or a kind with a length; return None for other names.

    Raises:
        InputError: there are not enough different words for the length.
    """
    named = parse_name(name)
    if named is not None:
        return [_task(*named)]
    kind = _kind(name)
    if kind is None and name != GROUP:
        return None
    kinds = KINDS if kind is None else (kind,)
    tasks = [_task(each, length) for each in kinds for length in DEFAULT_LENGTHS[each]]
    group = Group.from_config(
        {
            "group": name,
            "task": [task.config.task for task in tasks],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
            "metadata": {"version": 1.0},
        }
    )
    for task in tasks:
        group.add(task)
    return [group]


def _kind(name: str) -> str | None:
    kind = name.removeprefix(f"{GROUP}_")
    return kind if kind != name and kind in DEFAULT_LENGTHS else None


def _task(kind: str, length: int) -> InMemoryTask:
    name = f"{GROUP}_{kind}_{length}"
    if length > max_length(kind):
        raise InputError(f"`tasks={name}`: the longest is {GROUP}_{kind}_{max_length(kind)}")
    rows = [asdict(question) for question in questions(kind, length)]
    unit = "pairs" if kind == "associative" else "words"
    config = {
        "task": name,
        "task_alias": f"{kind}, {length:,} {unit}",
        "dataset_path": "hybridize",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    return InMemoryTask(config, datasets.DatasetDict(test=datasets.Dataset.from_list(rows)))
