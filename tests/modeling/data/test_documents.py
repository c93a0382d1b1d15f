"""Readers of documents: what they read, and what they say about what they cannot."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.data.documents import SUFFIXES, read_documents

text = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1)


def read(path):
    return list(read_documents(str(path), "--data"))


@settings(deadline=None)
@given(texts=st.lists(text, max_size=5))
def test_json_lines_are_read(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": t, "id": 1}) for t in texts), "utf-8")
    assert read(path) == texts


def test_a_text_is_one_document_unless_it_says_otherwise(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.TXT").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert read(tmp_path / "a.txt") == ["one\n\ntwo"]
    assert read(tmp_path / "b.TXT") == ["one", "two"]


def test_parquet_is_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = [f"document {i}" for i in range(2500)]
    pq.write_table(pa.table({"id": range(2500), "text": texts}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == texts
    pq.write_table(pa.table({"body": texts}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="has no column 'text'"):
        read(tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="has no 'text' that is a string"):
        read(tmp_path / "c.parquet")


@settings(deadline=None, max_examples=60)
@given(content=st.binary(min_size=1, max_size=80), suffix=st.sampled_from(SUFFIXES))
def test_damaged_files_are_bad_input_or_text(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("data") / f"data{suffix}"
    path.write_bytes(content)
    complaint = None
    try:
        assert all(isinstance(document, str) for document in read(path))
    except InputError as error:
        complaint = str(error)
    assert complaint is None or complaint.startswith(str(path))
    assert complaint is None or "\n" not in complaint


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: has no 'text'"),
        ('{"text": 3}', "line 2: has no 'text' that is a string"),
        ("[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_the_line_that_is_wrong_is_named(tmp_path, line, complaint):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=complaint):
        read(path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.txt", "no such file"),
        ("/nowhere/at/all", "no such file"),
        ("folder", "is a directory"),
        ("data.csv", "must end in"),
    ],
)
def test_sources_that_cannot_be(tmp_path, monkeypatch, name, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.csv").write_text("text\n")
    with pytest.raises(InputError, match=complaint):
        list(read_documents(name, "--data"))


def test_hub_datasets_are_streamed(monkeypatch):
    import datasets

    asked = []

    def load(name, **options):
        asked.append((name, options))
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_documents("someone/texts:validation", "--data")) == ["a", "b"]
    assert asked == [("someone/texts", {"split": "validation", "streaming": True})]

    def fail(name, **options):
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"--data someone/texts: .* hub: no route$"):
        list(read_documents("someone/texts", "--data"))


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HybridizeError, match=r'pip install "hybridize\[train\]"'):
        read(tmp_path / "a.parquet")
