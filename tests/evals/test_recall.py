"""The recall tasks: only the text gives the answers, and nothing is downloaded."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hybridize.__main__ import main
from hybridize.evals.recall_questions import (
    CHOICES,
    DEFAULT_LENGTHS,
    NEEDLES,
    max_length,
    parse_name,
    questions,
)
from hybridize.evals.tasks import select_tasks

ASKED = re.compile(r"\nIn other words: The ([\w ]+) belongs to$")
STATED = re.compile(r"The ([\w ]+?) belongs to (\w+)\.")
TASKS = [(kind, length) for kind, lengths in DEFAULT_LENGTHS.items() for length in lengths]


@pytest.mark.parametrize(("kind", "length"), [*TASKS, ("associative", 2), ("associative", 400)])
def test_the_text_states_the_answer_once(kind: str, length: int) -> None:
    made = questions(kind, length)
    assert len({(q.text, q.choices) for q in made}) == len(made)
    for question in made:
        (asked,) = ASKED.findall(question.text)
        stated = STATED.findall(question.text)
        assert len(stated) == {"associative": length, "needle": 1, "needles": NEEDLES}[kind]
        assert [owner for thing, owner in stated if thing == asked] == [
            question.choices[question.answer]
        ]
        assert len(set(question.choices)) == CHOICES


@pytest.mark.parametrize(("kind", "length"), TASKS)
def test_neither_names_nor_positions_reveal_the_answer(kind: str, length: int) -> None:
    for question in questions(kind, length):
        assert all(f" {name}" in question.text for name in question.choices)
    many = 400 if length < 1000 else 64
    answers = [question.answer for question in questions(kind, length, many)]
    assert all(0.5 < answers.count(index) * CHOICES / many < 1.5 for index in range(CHOICES))


def test_needles_are_anywhere_in_texts_of_the_requested_length() -> None:
    depths = []
    for question in questions("needle", 512):
        words = question.text.split()
        assert 512 <= len(words) < 540
        depths.append(words.index("belongs") / len(words))
    assert min(depths) < 0.1
    assert max(depths) > 0.9


def test_several_needles_are_spread_over_one_text() -> None:
    made = questions("needles", 1024)
    for first in range(0, len(made), NEEDLES):
        about_one_text = made[first : first + NEEDLES]
        texts = {question.text.partition("\nIn other words: ")[0] for question in about_one_text}
        (text,) = texts
        words = text.split()
        assert 1024 <= len(words) < 1050
        places = [place for place, word in enumerate(words) if word == "belongs"]
        for index, place in enumerate(places):  # one in each sixteenth of the text
            assert index - 0.2 < place / len(words) * NEEDLES < index + 1.2
        asked = [ASKED.findall(question.text)[0] for question in about_one_text]
        assert len(set(asked)) == NEEDLES
        assert asked != [thing for thing, _ in STATED.findall(text)]  # not in the text's order
    assert len({question.text for question in made}) == len(made)
    assert questions("needles", 1024, 20) == made[:20]


def test_the_model_reads_a_text_with_several_needles_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridize.evals.evaluate import evaluate
    from hybridize.modeling.model import HybridForCausalLM

    read = []
    forward = HybridForCausalLM.forward

    @functools.wraps(forward)
    def record(self: Any, *arguments: Any, **options: Any) -> Any:
        read.append(options["input_ids"].numel())
        return forward(self, *arguments, **options)

    monkeypatch.setattr(HybridForCausalLM, "forward", record)
    options = {"device": "cpu", "max_length": 4096, "limit": NEEDLES}
    evaluate(checkpoint, tasks=["recall_needles_100"], **options)
    shared, read[:] = sum(read), []
    evaluate(checkpoint, tasks=["recall_needle_100"], **options)
    assert shared < sum(read) / 3


def test_questions_are_reproducible_and_differ_by_length() -> None:
    assert questions("needle", 64) == questions("needle", 64)
    assert questions("needle", 64)[0] != questions("needle", 65)[0]
    assert questions("associative", 8, 10) == questions("associative", 8)[:10]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("recall_needle_512", ("needle", 512)),
        ("recall_associative_7", ("associative", 7)),
        ("recall_needles_512", ("needles", 512)),
        ("recall_needle_0", None),
        ("recall_needle", None),
        ("recall_hay_5", None),
        ("xrecall_needle_5", None),
    ],
)
def test_names_of_tasks_are_parsed(name: str, parsed: tuple[str, int] | None) -> None:
    assert parse_name(name) == parsed


def test_lm_eval_asks_the_generated_questions(no_network: list[Any]) -> None:
    (task,) = select_tasks(["recall_associative_4"]).tasks
    task.build_all_requests(limit=None, rank=0, world_size=1)
    made = questions("associative", 4)
    assert len(task.instances) == CHOICES * len(made)
    for instance in task.instances:
        question = made[instance.doc_id]
        assert instance.args == (question.text, f" {question.choices[instance.idx]}")
        assert instance.doc["answer"] == question.answer
    assert no_network == []


def test_the_command_scores_recall_tasks(
    capsys: Any, checkpoint: Path, no_network: list[Any], tmp_path: Path
) -> None:
    output = tmp_path / "recall.json"
    command = ["eval", str(checkpoint), "--tasks", "recall_associative,recall_needle_16"]
    assert main([*command, "--limit", "3", "-o", str(output), "--quiet"]) == 0
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())["results"]
    names = [f"recall_associative_{n}" for n in DEFAULT_LENGTHS["associative"]]
    assert set(results) == {"recall_associative", *names, "recall_needle_16"}
    mean = sum(results[name]["acc,none"] for name in names) / len(names)
    assert results["recall_associative"]["acc,none"] == pytest.approx(mean)
    assert "associative, 16 pairs" in printed
    assert no_network == []


def test_a_length_without_enough_words_is_refused(capsys: Any, checkpoint: Path) -> None:
    limit = max_length("associative")
    assert main(["eval", str(checkpoint), "--tasks", f"recall_associative_{limit + 1}"]) == 2
    assert f"the longest is recall_associative_{limit}" in capsys.readouterr().err
