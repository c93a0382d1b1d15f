"""MMLU scores against lm-eval itself, and against scorers that share no code with it."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from exams import CONTEXT, CUSTOM, KNOWN

from hybridize.evals.evaluate import evaluate
from hybridize.evals.harness_model import HarnessModel
from hybridize.evals.results import EvaluationResult

GROUPS = {"default": "mmlu", "continuation": "mmlu_continuation"}


@pytest.fixture(scope="module", params=["bos", "plain"])
def model(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Path:
    return checkpoints[request.param]


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _answers_by_hand(model: Path, exam: Path, subject: str, shots: int) -> list[tuple[str, str]]:
    """Answer a subject's questions with plain transformers, in float64.

    Returns the chosen and the right letter of each question.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def ask(row: list[str]) -> str:
        choices = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip("ABCD", row[1:5], strict=True)
        )
        return f"{row[0].strip()}\n{choices}\nAnswer:"

    about = subject.replace("_", " ")
    opening = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    examples = _read(exam / "dev" / f"{subject}_dev.csv")[:shots]
    shown = "".join(f"{ask(row)} {row[5]}\n\n" for row in examples)
    answers = []
    for row in _read(exam / "test" / f"{subject}_test.csv"):
        prompt = opening + shown + ask(row)
        start = len(tokenizer(prompt).input_ids)
        scores = {}
        for letter in "ABCD":
            tokens = torch.tensor(tokenizer(f"{prompt} {letter}").input_ids)
            answer = tokens[start:]
            seen = tokens[-CONTEXT - 1 :]
            with torch.no_grad():
                logits = network(seen[None, :-1]).logits[0, -len(answer) :]
            scores[letter] = logits.log_softmax(-1).gather(-1, answer[:, None]).sum().item()
        answers.append((max(scores, key=scores.__getitem__), row[5]))
    return answers


@pytest.mark.parametrize("shots", [0, 5])
def test_scores_equal_those_of_plain_transformers_in_float64(
    model: Path, mixed_exam: Path, shots: int
) -> None:
    answers = {
        subject: _answers_by_hand(model, mixed_exam, subject, shots)
        for subject in ("anatomy", *CUSTOM)
    }
    # A model that always gives the same answer would prove little.
    assert len({chosen for pairs in answers.values() for chosen, _ in pairs}) >= 3
    right = {subject: [a == b for a, b in pairs] for subject, pairs in answers.items()}
    result = evaluate(
        model,
        mmlu_dir=mixed_exam,
        num_fewshot=shots,
        batch_size=4,
        backend="transformers",
        device="cpu",
    )
    found = {metric.task: metric for metric in result.models[0].metrics}
    for subject, outcomes in right.items():
        metric = found[f"mmlu_{subject}"]
        share = sum(outcomes) / len(outcomes)
        assert metric.value == pytest.approx(share, abs=1e-12)
        assert metric.stderr == pytest.approx(math.sqrt(share * (1 - share) / (len(outcomes) - 1)))
        assert (metric.questions, metric.num_fewshot) == (len(outcomes), shots)
    expected = {
        "mmlu": right.values(),
        "mmlu_stem": [right["anatomy"]],
        "mmlu_custom": [right[subject] for subject in CUSTOM],
    }
    for group, members in expected.items():
        together = [outcome for outcomes in members for outcome in outcomes]
        assert found[group].value == pytest.approx(sum(together) / len(together), abs=1e-12)
        assert found[group].questions == len(together)
    assert found.keys() == {*expected, *(f"mmlu_{subject}" for subject in right)}


def _continuations_by_hand(
    model: Path, exam: Path, subject: str, shots: int
) -> list[tuple[list[float], list[str], int]]:
    """Return the choices' log-likelihoods in float64, the choices, and the index of the answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def ask(row: list[str]) -> str:
        return f"Question: {row[0].strip()}\nAnswer:"

    opening = f"The following are questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    for row in _read(exam / "dev" / f"{subject}_dev.csv")[:shots]:
        opening += f"{ask(row)} {row[1 + 'ABCD'.index(row[5])]}\n\n"
    answers = []
    for row in _read(exam / "test" / f"{subject}_test.csv"):
        start = len(tokenizer(opening + ask(row)).input_ids)
        scores = []
        for choice in row[1:5]:
            tokens = torch.tensor(tokenizer(f"{opening}{ask(row)} {choice}").input_ids)
            answer = tokens[start:]
            with torch.no_grad():
                logits = network(tokens[None, -CONTEXT - 1 : -1]).logits[0, -len(answer) :]
            scores.append(logits.log_softmax(-1).gather(-1, answer[:, None]).sum().item())
        answers.append((scores, row[1:5], "ABCD".index(row[5])))
    return answers


@pytest.mark.parametrize("shots", [0, 3])
def test_scores_of_continuations_equal_those_of_plain_transformers_in_float64(
    model: Path, mixed_exam: Path, shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_likelihoods: list[float] = []
    score = HarnessModel.loglikelihood

    def record(self: HarnessModel, requests: list[Any], **options: Any) -> Any:
        found = score(self, requests, **options)
        log_likelihoods.extend(value for value, _ in found)
        return found

    monkeypatch.setattr(HarnessModel, "loglikelihood", record)
    result = evaluate(
        model, tasks=["mmlu_continuation"], mmlu_dir=mixed_exam, num_fewshot=shots, device="cpu"
    )
    expected = {
        subject: _continuations_by_hand(model, mixed_exam, subject, shots)
        for subject in ("anatomy", *CUSTOM)
    }
    every = [score for answers in expected.values() for scores, *_ in answers for score in scores]
    assert sorted(log_likelihoods) == pytest.approx(sorted(every), abs=1e-3)
    found = {(metric.task, metric.metric): metric.value for metric in result.models[0].metrics}
    right: dict[str, list[bool]] = {}
    for subject, answers in expected.items():
        task = f"mmlu_{subject}_continuation"
        right[subject] = [scores.index(max(scores)) == answer for scores, _, answer in answers]
        assert found[task, "acc"] == pytest.approx(sum(right[subject]) / len(answers))
        per_letter = [
            [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
            for scores, choices, _ in answers
        ]
        normalized = [
            scores.index(max(scores)) == answer
            for scores, (*_, answer) in zip(per_letter, answers, strict=True)
        ]
        assert found[task, "acc_norm"] == pytest.approx(sum(normalized) / len(answers))
    for group, subjects in {
        "mmlu_continuation": list(expected),
        "mmlu_continuation::stem": ["anatomy"],
        "mmlu_custom_continuation": list(CUSTOM),
    }.items():
        outcomes = [outcome for subject in subjects for outcome in right[subject]]
        assert found[group, "acc"] == pytest.approx(sum(outcomes) / len(outcomes))
        assert (group, "acc_norm") not in found
    labels = {metric.task: metric.label for metric in result.models[0].metrics}
    assert labels["mmlu_continuation::stem"] == "stem"
    assert labels["mmlu_continuation"] == f"exam in {mixed_exam.name} (continuation)"


def _lm_eval_itself(
    model: Path, exam: Path, folder: Path, limit: int | None = None, form: str = "default"
) -> dict[str, Any]:
    """Run lm-eval on its own task files, which read the exam as JSON lines instead of the hub."""
    import lm_eval.tasks

    original = Path(lm_eval.tasks.__file__).parent / "mmlu" / form
    for path in original.glob("_mmlu*.yaml"):  # the groups
        (folder / path.name).write_text(f"include: {path}\n")
    for path in (exam / "test").iterdir():
        subject = path.name.removesuffix("_test.csv")
        files = {}
        for split in ("dev", "test"):
            files[split] = folder / f"{subject}_{split}.jsonl"
            with files[split].open("w") as file:
                for text, *choices, letter in _read(exam / split / f"{subject}_{split}.csv"):
                    row = {"question": text, "choices": choices, "answer": "ABCD".index(letter)}
                    file.write(json.dumps(row) + "\n")
        (folder / f"{subject}.yaml").write_text(
            f"include: {original}/mmlu_{subject}.yaml\n"
            "dataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  cache_dir: {folder}/cache\n"
            f"  data_files: {{dev: {files['dev']}, test: {files['test']}}}\n"
        )
    manager = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[GROUPS[form]] if len(manager.all_tags) == 4 else manager.all_subtasks,
        task_manager=manager,
        num_fewshot=5,
        batch_size=3,
        device="cpu",
        limit=limit,
    )
    assert results is not None
    return dict(results)


@pytest.fixture(scope="module", params=["default", "continuation"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(model: Path, exam: Path, form: str) -> EvaluationResult:
    return evaluate(
        model, tasks=[GROUPS[form]], mmlu_dir=exam, backend="transformers", device="cpu"
    )


def test_results_equal_those_of_lm_eval_itself(
    model: Path, exam: Path, ours: EvaluationResult, tmp_path: Path, form: str
) -> None:
    theirs = _lm_eval_itself(model, exam, tmp_path, form=form)
    found = ours.models[0].lm_eval
    assert len(theirs["results"]) == len(KNOWN) + 5
    group, alias = GROUPS[form], {"default": "mmlu", "continuation": "mmlu (continuation)"}[form]
    for part in ("results", "groups"):  # these questions are not MMLU's, and are not called so
        assert theirs[part][group].pop("alias") == alias
        named = f"exam in {exam.name}"
        assert found[part][group].pop("alias") == alias.replace("mmlu", named)
    assert found["results"] == theirs["results"]
    for part in ("groups", "group_subtasks", "versions", "n-shot", "n-samples", "max_length"):
        assert found[part] == theirs[part], part
    for task, config in theirs["configs"].items():
        source = {"dataset_path", "dataset_name", "dataset_kwargs", "metadata", "num_fewshot"}
        kept = {key: value for key, value in config.items() if key not in source}
        assert kept == {key: found["configs"][task][key] for key in kept}
    for task, samples in theirs["samples"].items():
        right = {sample["doc_id"]: sample["acc"] for sample in samples}
        assert ours.models[0].scores[task, "acc", "none"] == right
    prompts = {
        sample["prompt_hash"] for samples in theirs["samples"].values() for sample in samples
    }
    assert len(prompts) == ours.models[0].prompts
    assert ours.models[0].truncated_prompts < ours.models[0].prompts
    assert (ours.models[0].truncated_prompts > 0) == (form == "default")  # longer prompts


def test_results_have_all_keys_of_lm_evals_results(ours: EvaluationResult) -> None:
    from lm_eval.result_schema import EvalResults

    assert EvalResults.__annotations__.keys() - ours.models[0].lm_eval.keys() == {"samples"}


def test_local_exams_need_no_network(
    checkpoint: Path, mixed_exam: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    # Not even if the offline mode is off.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    result = evaluate(
        checkpoint, mmlu_dir=mixed_exam, limit=1, backend="transformers", device="cpu"
    )
    assert result.models[0].metrics[0].questions == 3
    assert not no_network


def test_parts_of_an_exam_can_be_selected(checkpoint: Path, mixed_exam: Path) -> None:
    result = evaluate(
        checkpoint,
        tasks=["mmlu_stem_tasks", "mmlu_tools"],
        mmlu_dir=mixed_exam,
        limit=2,
        backend="transformers",
        device="cpu",
    )
    metrics = result.models[0].metrics
    assert [(metric.task, metric.depth) for metric in metrics] == [
        ("mmlu_anatomy", 0),
        ("mmlu_tools", 0),
    ]
    assert [metric.questions for metric in metrics] == [2, 2]


def test_the_limit_counts_the_questions_of_each_subject(checkpoint: Path, mixed_exam: Path) -> None:
    groups = ["mmlu", "mmlu_continuation"]
    result = evaluate(checkpoint, tasks=groups, mmlu_dir=mixed_exam, limit=2, device="cpu")
    questions = {metric.task: metric.questions for metric in result.models[0].metrics}
    subjects = ("anatomy", *CUSTOM)
    for group, suffix in zip(groups, ("", "_continuation"), strict=True):
        assert questions[group] == 2 * len(subjects)
        assert {questions[f"mmlu_{subject}{suffix}"] for subject in subjects} == {2}


def test_a_real_checkpoint_on_real_questions(materials: Path, tmp_path: Path) -> None:
    exam = tmp_path / "mmlu"
    for split in ("dev", "test"):
        (exam / split).mkdir(parents=True)
        for subject in ("anatomy", "high_school_us_history"):
            name = f"{split}/{subject}_{split}.csv"
            (exam / name).symlink_to(materials / "mmlu" / name)
    folder = tmp_path / "tasks"
    folder.mkdir()
    model = materials / "stories260K"
    theirs = _lm_eval_itself(model, exam, folder, limit=5)
    ours = evaluate(
        model,
        tasks=["mmlu_anatomy", "mmlu_high_school_us_history"],
        mmlu_dir=exam,
        limit=5,
        backend="transformers",
        device="cpu",
    )
    assert ours.models[0].lm_eval["results"] == theirs["results"]
    assert {metric.questions for metric in ours.models[0].metrics} == {5}
    assert ours.exam == "MMLU"
