"""Only MMLU's own questions are called MMLU: in results, files, tables and reports."""

import json
from pathlib import Path
from typing import Any

import pytest
from exams import KNOWN, write_exam

from hybridize.__main__ import main
from hybridize.demo import EXAM
from hybridize.evals.exam import Subject, list_subjects, read_subject
from hybridize.evals.exam_name import MMLU_QUESTIONS, exam_name


def _subjects(directory: Path) -> list[Subject]:
    return [read_subject(directory, name) for name in list_subjects(directory)]


def test_mmlus_own_files_are_mmlu(materials: Path) -> None:
    mmlu = materials / "mmlu"
    subjects = _subjects(mmlu)
    assert {subject.name: len(subject.test) for subject in subjects} == MMLU_QUESTIONS
    assert exam_name(mmlu, subjects) == "MMLU"
    assert exam_name(mmlu, subjects[3:5]) == "MMLU"


def test_the_bundled_exam_is_recognized_in_any_directory(tmp_path: Path) -> None:
    subjects = _subjects(EXAM)
    assert "astronomy" in {subject.name for subject in subjects} & MMLU_QUESTIONS.keys()
    assert exam_name(EXAM, subjects) == "bundled exam"
    assert exam_name(tmp_path / "copy", subjects[:1]) == "bundled exam"


def test_other_exams_are_named_by_their_directory(tmp_path: Path) -> None:
    mine = _subjects(write_exam(tmp_path / "my_exam", KNOWN))
    assert {subject.name for subject in mine} <= MMLU_QUESTIONS.keys()
    assert exam_name(tmp_path / "my_exam", mine) == "exam in my_exam"
    assert exam_name(tmp_path / "my_exam", [*mine, *_subjects(EXAM)]) == "exam in my_exam"


def test_mmlu_counts_its_57_subjects_and_14042_questions() -> None:
    assert (len(MMLU_QUESTIONS), sum(MMLU_QUESTIONS.values())) == (57, 14_042)


@pytest.mark.parametrize("exam", [EXAM, None], ids=["bundled", "other"])
def test_results_table_and_report_name_the_exam(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, exam: Path | None
) -> None:
    directory = exam or write_exam(tmp_path / "my_exam", KNOWN)
    name = "exam in my_exam" if exam is None else "bundled exam"
    output, page = tmp_path / "eval.json", tmp_path / "page.html"
    command = ["eval", str(checkpoint), "--mmlu-dir", str(directory), "--limit", "1"]
    assert main([*command, "--num-fewshot", "0", "-o", str(output), "--quiet"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert f"tasks named mmlu ask the questions of the {name}, not those of MMLU" in table
    written: dict[str, Any] = json.loads(output.read_text())
    assert written["hybridize"]["exam"] == name
    assert written["hybridize"]["metrics"][0]["label"] == name
    assert written["results"]["mmlu"]["alias"].strip() == name  # lm-eval's key is unchanged
    assert main(["report", str(output), "-o", str(page), "--quiet"]) == 0
    assert f"Accuracy on: {name}." in page.read_text()
    assert "MMLU" not in page.read_text()
