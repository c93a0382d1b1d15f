"""The evaluation tasks of hybridize itself. Their questions are generated, not downloaded.

To add a task, write one file in this folder with a function that builds it, and add one line to
``LOCAL_TASKS``.
"""

from importlib import import_module

from lm_eval.api.group import Group
from lm_eval.api.task import Task

LOCAL_TASKS = {
    "recall": "hybridize.evals.recall_tasks:build_recall",
}
"""For the first word of a task's name, the function that builds it, as ``module:function``.

``recall`` builds the tasks ``recall``, ``recall_associative``, ``recall_associative_16`` and so on.
The function takes the whole name and returns tasks or groups of lm-eval, or None for an unknown
name.
"""


def build_local(name: str) -> list[Task | Group] | None:
    """Return the task or group of hybridize called ``name``; None if there is none.

    Raises:
        InputError: the task exists, but not with the length in ``name``.
    """
    target = LOCAL_TASKS.get(name.split("_")[0])
    if target is None:
        return None
    module, _, function = target.partition(":")
    built: list[Task | Group] | None = getattr(import_module(module), function)(name)
    return built
