"""Tasks whose data lie on the hub: MMLU without local files, and lm-eval's others."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.tasks import TaskManager

from hybridize.errors import HybridizeError, InputError
from hybridize.evals import tasks as tasks_module
from hybridize.evals.evaluate import evaluate
from hybridize.evals.exam import read_subject
from hybridize.evals.exam_tasks import documents
from hybridize.evals.in_memory_task import InMemoryTask
from hybridize.evals.tasks import select_tasks


@pytest.fixture(scope="module", autouse=True)
def _one_index() -> Any:
    """Let lm-eval read its thousands of task files once for all tests here."""
    everything = TaskManager()

    def index(**options: Any) -> TaskManager:
        return TaskManager(**options) if options else everything

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks_module, "TaskManager", index)
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, exam: Path) -> list[tuple[str, str]]:
    """Stands in for the hub: MMLU from the exam, and one task more. Lists what was asked for."""
    asked = []

    def load_dataset(path: str, name: str, **_options: Any) -> datasets.DatasetDict:
        asked.append((path, name))
        if path == "cais/mmlu":
            return documents(read_subject(exam, name))
        rows = [
            {
                "question": f"Which is number {index}?",
                "choices": {"text": ["this", "that"], "label": ["A", "B"]},
                "answerKey": "AB"[index % 2],
            }
            for index in range(6)
        ]
        split = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(train=split, validation=split, test=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_mmlu_from_the_hub_gives_what_the_same_files_give(
    checkpoint: Path, exam: Path, hub: list[tuple[str, str]]
) -> None:
    names = ["mmlu_anatomy", "mmlu_virology"]
    options: dict[str, Any] = {"tasks": names, "backend": "transformers", "device": "cpu"}
    from_hub = evaluate(checkpoint, **options)
    assert hub == [("cais/mmlu", "anatomy"), ("cais/mmlu", "virology")]
    from_files = evaluate(checkpoint, mmlu_dir=exam, **options)
    assert from_hub.models[0].metrics == from_files.models[0].metrics
    assert {metric.num_fewshot for metric in from_hub.models[0].metrics} == {5}


def test_another_task_beside_mmlu_keeps_its_own_shots(
    checkpoint: Path, exam: Path, hub: list[tuple[str, str]]
) -> None:
    result = evaluate(
        checkpoint,
        tasks=["arc_easy", "mmlu"],
        mmlu_dir=exam,
        limit=3,
        backend="transformers",
        device="cpu",
    )
    assert hub == [("allenai/ai2_arc", "ARC-Easy")]
    metrics = {metric.key: metric for metric in result.models[0].metrics}
    assert metrics["arc_easy", "acc", "none"].num_fewshot == 0
    assert metrics["arc_easy", "acc_norm", "none"].questions == 3
    assert metrics["mmlu_anatomy", "acc", "none"].num_fewshot == 5


def test_unknown_names_are_refused_with_near_matches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such task; near matches: arc_easy"):
        select_tasks(["arc_eazy"])
    file = tmp_path / "task.yaml"  # a path could bring code along
    file.write_text("task: mine\n")
    with pytest.raises(InputError, match="no such task"):
        select_tasks([str(file)])


def test_an_exam_without_a_task_of_it_is_refused(exam: Path) -> None:
    with pytest.raises(InputError, match="add mmlu to --tasks"):
        select_tasks(["arc_easy"], mmlu_dir=exam)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_arguments: Any, **_options: Any) -> None:
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub\n(offline mode)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(HybridizeError, match="--mmlu-dir DIR reads MMLU") as caught:
        select_tasks(["mmlu_anatomy"])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("kind", ["UNSAFE_CODE", "MULTIMODAL"])
def test_tasks_that_run_programs_or_show_images_are_refused(
    exam: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryTask, kind, True, raising=False)
    with pytest.raises(InputError, match="--tasks mmlu_anatomy: "):
        select_tasks(["mmlu_anatomy"], mmlu_dir=exam)
