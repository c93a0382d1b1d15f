"""Exams in MMLU's layout: reading them, and errors in damaged ones."""

import csv
import io
from pathlib import Path

import pytest
from exams import write_exam, write_questions
from hypothesis import given
from hypothesis import strategies as st

from hybridize.errors import InputError
from hybridize.evals.exam import Question, list_subjects, read_questions, read_subject

GOOD = ["What?", "one", "two", "three", "four", "C"]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufeff"))
questions = st.builds(Question, texts, st.tuples(texts, texts, texts, texts), st.integers(0, 3))


@given(
    st.lists(questions, min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_questions_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[Question],
    byte_order_mark: bool,
    quote_all: bool,
    newline: str,
) -> None:
    rows = [[question.text, *question.choices, "ABCD"[question.answer]] for question in written]
    # csv.writer forgets to quote a lone carriage return.
    quote_all = quote_all or any("\r" in field for row in rows for field in row)
    buffer = io.StringIO(newline="")
    csv.writer(
        buffer,
        lineterminator=newline,
        quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL,
    ).writerows(rows)
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8-sig" if byte_order_mark else "utf-8"))
    assert read_questions(path) == tuple(written)


@given(st.one_of(st.binary(max_size=200), st.text('"AB,\n\r x', max_size=60).map(str.encode)))
def test_arbitrary_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.csv"
    path.write_bytes(content)
    refusal = None
    try:
        found = read_questions(path)
        assert found
        assert all(len(question.choices) == 4 for question in found)
    except InputError as error:
        refusal = str(error)
    assert refusal is None or (str(path) in refusal and "\n" not in refusal)


def test_fields_may_span_lines_and_errors_name_the_first_line_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "x_test.csv"
    path.write_text('"two\nlines",1,2,3,4,A\n\n"three\nmore\nlines",1,2,3,4\n')
    with pytest.raises(InputError, match=r"x_test\.csv, line 4: 5 fields instead of 6"):
        read_questions(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"q,1,2,3,4,E\n", "line 1: the last field, the right answer, is 'E' instead"),
        (b"q,1,2,3,4,\n", "line 1: the last field, the right answer, is '' instead"),
        (b"q,1,2,3,4,AB\n", "instead of A, B, C or D"),
        (b"q,1,2,3,4,A\nq,1,2,3,4,5,A\n", "line 2: 7 fields"),
        (b'q,1,2,3,4,A\n"never closed,1,2,3,4,A\n', "line 2: not valid CSV"),
        (b"caf\xe9,1,2,3,4,A\n", "not UTF-8"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x_test.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)


def test_subjects_are_listed_and_read(tmp_path: Path) -> None:
    write_exam(tmp_path, ["tools", "anatomy"])
    (tmp_path / "test" / "._tools_test.csv").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "test" / "notes.txt").write_text("not a subject")
    assert list_subjects(tmp_path) == ["anatomy", "tools"]
    subject = read_subject(tmp_path, "tools")
    assert (subject.name, len(subject.dev), len(subject.test)) == ("tools", 6, 6)
    assert subject.test == read_questions(tmp_path / "test" / "tools_test.csv")


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        list_subjects(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no dev/ directory"):
        list_subjects(tmp_path)
    (tmp_path / "dev").mkdir()
    with pytest.raises(InputError, match="has no test/ directory"):
        list_subjects(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="no subject"):
        list_subjects(tmp_path)
    write_questions(tmp_path / "test" / "law_test.csv", [GOOD])
    with pytest.raises(InputError, match=r"dev/law_dev\.csv: missing"):
        list_subjects(tmp_path)


def test_a_subject_name_with_template_code_is_refused(tmp_path: Path) -> None:
    write_exam(tmp_path, ["law"])
    write_questions(tmp_path / "test" / "{{ 7*7 }}_test.csv", [GOOD])
    with pytest.raises(InputError, match="letters, digits"):
        list_subjects(tmp_path)
