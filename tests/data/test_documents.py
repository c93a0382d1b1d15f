"""Reading documents of each format, and the errors for files that cannot be read."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_stub import Refusal, stub_hub, use_hub
from hybridize.data.documents import read_documents
from hybridize.data.sources import SUFFIXES
from hybridize.errors import HybridizeError, InputError

text = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1)


def read(path):
    return list(read_documents(str(path), "data"))


def read_or_refuse(path):
    """Read a file that may be damaged: expect texts that UTF-8 can encode, or a one-line error."""
    try:
        documents = read(path)
    except InputError as error:
        message = str(error)
    else:
        "".join(documents).encode()
        return
    assert str(path) in message
    assert "\n" not in message


@settings(deadline=None)
@given(texts=st.lists(text, max_size=5))
def test_json_lines_are_read(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": t, "id": 1}) for t in texts), "utf-8")
    assert read(path) == texts


def test_a_text_file_is_one_document_unless_separators_split_it(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.TXT").write_text("one\n<|endoftext|>\n\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    (tmp_path / "c.txt").write_text("a line is just <|endoftext|>\r\nor not", newline="")
    assert read(tmp_path / "a.txt") == ["one\n\ntwo"]
    assert read(tmp_path / "b.TXT") == ["one", "two"]
    assert read(tmp_path / "c.txt") == ["a line is just <|endoftext|>\nor not"]


@settings(deadline=None)
@given(texts=st.lists(text.map(lambda t: t.strip("\n") + "."), max_size=5))
def test_separator_lines_split_a_text_file(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text("\n<|endoftext|>\n".join(texts), "utf-8")
    assert read(path) == texts


def test_a_byte_order_mark_is_skipped(tmp_path):
    for name, content in (("a.txt", "one"), ("b.jsonl", '{"text": "one"}')):
        (tmp_path / name).write_text(content, "utf-8-sig")
        assert read(tmp_path / name) == ["one"]


def test_a_json_file_may_hold_an_array_of_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "one"}, {"text": "two\n"}], indent=2))
    assert read(path) == ["one", "two\n"]
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(path) == ["one", "two"]
    for content, complaint in (
        ('[{"text": "one"}, {"body": ""}]', r"a\.json: entry 2: 'text' is missing"),
        ('\n[{"text": "one"}', r"a\.json: not valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=complaint):
            read(path)


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
    with pytest.raises(InputError, match="row 1: 'text' is missing or not a string"):
        read(tmp_path / "c.parquet")
    broken = pa.array([b"fine", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet: not a readable Parquet file: "):
        read(tmp_path / "d.parquet")


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


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_partly_changed_files_are_bad_input_or_text(tmp_path_factory, data):
    """Valid files with a few changed bytes, or cut off."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    suffix = data.draw(st.sampled_from(["parquet", "jsonl", "json"]))
    path = tmp_path_factory.mktemp("data") / f"data.{suffix}"
    rows = [{"text": f"document é {i}"} for i in range(4)]
    if suffix == "parquet":
        compression = data.draw(st.sampled_from(["none", "snappy"]))
        pq.write_table(pa.Table.from_pylist(rows), path, compression=compression)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    else:
        path.write_text(json.dumps(rows), "utf-8")
    content = bytearray(path.read_bytes())
    for offset in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[offset] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    read_or_refuse(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: 'text' is missing"),
        ('{"text": 3}', "line 2: 'text' is missing or not a string"),
        ("[" * 100_000, "line 2: not valid JSON"),
        (r'{"text": "half \ud83d of it"}', "line 2: 'text' contains half of a surrogate pair"),
    ],
)
def test_errors_name_the_line(tmp_path, line, complaint):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=complaint):
        read(path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.txt", "no such file"),
        ("/nowhere/at/all", "no such file"),
        ("folder", r"contains no file that ends in \.txt"),
        ("data.csv", "must end in"),
    ],
)
def test_sources_that_do_not_exist_or_have_another_format(tmp_path, monkeypatch, name, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.csv").write_text("text\n")
    with pytest.raises(InputError, match=complaint):
        list(read_documents(name, "data"))


def test_hub_datasets_are_streamed(monkeypatch):
    import datasets

    calls = []

    def load(name, **options):
        calls.append((name, options))
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_documents("someone/texts:validation", "data")) == ["a", "b"]
    assert calls == [("someone/texts", {"split": "validation", "streaming": True})]
    for source, complaint in (
        ("a/b:c:d:e", "name a dataset as NAME, NAME:SPLIT"),
        ("a/b", r"`data=a/b`: row 2: 'text' is missing"),
    ):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"text": "a"}, {}]))
        with pytest.raises(InputError, match=complaint):
            list(read_documents(source, "data"))

    def with_configuration(name, configuration, *, split, streaming):
        return iter([{"text": f"{name} {configuration} {split} {streaming}"}])

    monkeypatch.setattr(datasets, "load_dataset", with_configuration)
    assert list(read_documents("a/b:raw:test", "data")) == ["a/b raw test True"]

    def fail(name, **options):
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"`data=someone/texts`: .* no such dataset: no route$"):
        list(read_documents("someone/texts", "data"))


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HybridizeError, match=r'pip install "hybridize\[train\]"'):
        read(tmp_path / "a.parquet")


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    import datasets

    with stub_hub() as hub:
        use_hub(monkeypatch, hub.address, tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.mark.parametrize(
    ("refusal", "error", "words"),
    [
        (
            Refusal(401, "GatedRepo"),
            InputError,
            r"it is gated; ask for access at https://huggingface\.co/datasets/a/b, then log in",
        ),
        (Refusal(401, "RepoNotFound"), InputError, "it does not exist there, or it is private"),
        (Refusal(404, "RevisionNotFound"), InputError, "it has no revision 'v2'"),
        (Refusal(503), HybridizeError, "the hub fails at the moment"),
    ],
)
def test_datasets_that_the_hub_refuses(empty_hub, refusal, error, words):
    empty_hub.refuse = lambda _method, _path: refusal
    with pytest.raises(error, match=f"^`data=a/b@v2`: .*{words}"):
        list(read_documents("a/b@v2", "data"))


def test_datasets_offline(empty_hub, monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"`data=a/b`: no such file, and .*HF_HUB_OFFLINE is set"):
        list(read_documents("a/b", "data"))


def test_a_revision_of_a_dataset(monkeypatch):
    import datasets

    calls = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: calls.append((names, options)) or []
    )
    assert list(read_documents("a/b@v2:raw:test", "data")) == []
    options = {"split": "test", "streaming": True, "revision": "v2"}
    assert calls == [(("a/b", "raw"), options)]
