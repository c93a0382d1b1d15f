"""Tasks from the hub (MMLU and others of lm-eval), and errors in their names."""

from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
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
def _small_index() -> Any:
    """Replace lm-eval's index of all tasks, which takes seconds, by one of MMLU and ARC."""
    folder = Path(lm_eval.tasks.__file__).parent
    paths = [folder / "mmlu" / "default", folder / "arc"]
    small = TaskManager(include_path=paths, include_defaults=False)

    def index(**options: Any) -> TaskManager:
        return TaskManager(**options) if options else small

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks_module, "TaskManager", index)
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, exam: Path) -> list[tuple[str, str]]:
    """Replace the hub by the exam and one more task; return the list of requested datasets."""
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


def test_mmlu_from_the_hub_and_from_files_gives_the_same_scores(
    checkpoint: Path, exam: Path, hub: list[tuple[str, str]]
) -> None:
    names = ["mmlu_anatomy", "mmlu_virology"]
    options: dict[str, Any] = {"tasks": names, "backend": "transformers", "device": "cpu"}
    from_hub = evaluate(checkpoint, **options)
    assert hub == [("cais/mmlu", "anatomy"), ("cais/mmlu", "virology")]
    from_files = evaluate(checkpoint, mmlu_dir=exam, **options)
    assert from_hub.models[0].metrics == from_files.models[0].metrics
    assert {metric.num_fewshot for metric in from_hub.models[0].metrics} == {5}


def test_other_tasks_keep_their_own_number_of_shots(
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
    file = tmp_path / "task.yaml"  # a path could point to code
    file.write_text("task: mine\n")
    with pytest.raises(InputError, match="no such task"):
        select_tasks([str(file)])


def test_an_exam_is_refused_if_no_task_uses_it(exam: Path) -> None:
    with pytest.raises(InputError, match="add mmlu to `tasks`"):
        select_tasks(["arc_easy"], mmlu_dir=exam)


def test_an_unreachable_hub_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_arguments: Any, **_options: Any) -> None:
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub\n(offline mode)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(HybridizeError, match="`mmlu_dir` reads MMLU") as caught:
        select_tasks(["mmlu_anatomy"])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("kind", ["UNSAFE_CODE", "MULTIMODAL"])
def test_tasks_that_run_programs_or_need_images_are_refused(
    exam: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryTask, kind, True, raising=False)
    with pytest.raises(InputError, match="`tasks=mmlu_anatomy`: "):
        select_tasks(["mmlu_anatomy"], mmlu_dir=exam)


def test_data_that_the_hub_does_not_give_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset")

    monkeypatch.setattr(TaskManager, "load", refuse)
    with pytest.raises(HybridizeError, match=r"`tasks=mmlu`: .* it is gated; ask for .*`mmlu_dir`"):
        select_tasks(["mmlu"])
