"""A new evaluation task from outside the package, added as CONTRIBUTING says: a file and a line."""

import json

import pytest

from hybridize.__main__ import main
from hybridize.demo import CHECKPOINT

FILE = '''
"""Copying a letter: the answer is the letter that the text repeats."""

import datasets

from hybridize.evals.in_memory_task import InMemoryTask


def build_copying(name):
    if name != "copying":
        return None
    rows = [
        {"text": f"{letter} {letter} {letter} {letter}", "choices": ["A", "B"], "answer": answer}
        for answer, letter in enumerate("AB")
    ]
    config = {
        "task": name,
        "dataset_path": "none",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return [InMemoryTask(config, datasets.DatasetDict(test=datasets.Dataset.from_list(rows)))]
'''


@pytest.fixture
def _copying(tmp_path, monkeypatch):
    from hybridize.evals.local_tasks import LOCAL_TASKS

    (tmp_path / "copying.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(LOCAL_TASKS, "copying", "copying:build_copying")


@pytest.mark.usefixtures("_copying")
def test_the_command_evaluates_it(tmp_path, capsys):
    command = ["eval", str(CHECKPOINT), "--tasks", "copying", "-o", str(tmp_path / "out.json")]
    assert main(command) == 0
    assert "copying" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["results"]["copying"]["acc,none"] in (0.0, 0.5, 1.0)
    assert result["n-samples"]["copying"]["effective"] == 2


@pytest.mark.usefixtures("_copying")
def test_other_names_are_left_to_lm_eval():
    from hybridize.evals.local_tasks import build_local

    assert build_local("copying_twice") is None
    assert build_local("arc_easy") is None
