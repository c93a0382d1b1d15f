"""Reading goes on at any document, in plain and in compressed files."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridize.data import file_formats
from hybridize.data.documents import read_documents, read_source
from hybridize.data.file_formats import cut, read_file
from hybridize.data.sources import parse_sources
from hybridize.errors import InputError

TEXTS = ["one\ntwo", "é" * 9, "three \U0001f600", "x" * 50, "<|endoftext", "last"]


def write_content(path, content):
    """Write a file, compressed as its name says."""
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
        return
    path.write_bytes(content)


def write(path, texts=TEXTS):
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": texts}), path, row_group_size=2)
    elif kind == "txt":
        write_content(path, "\n<|endoftext|>\n".join(texts).encode())
    elif kind == "json":
        write_content(path, json.dumps([{"text": t} for t in texts], indent=1).encode())
    else:
        write_content(path, "\n\n".join(json.dumps({"text": t}) for t in texts).encode())


NAMES = [f"a.{kind}{suffix}" for kind in ("txt", "jsonl", "json") for suffix in ("", ".gz", ".zst")]


@pytest.mark.parametrize("name", [*NAMES, "a.parquet"])
def test_every_position_can_be_read_again(tmp_path, name):
    path = tmp_path / name
    write(path)
    found = list(read_file(path))
    assert [text for _, text in found] == TEXTS
    for index, (position, _) in enumerate(found):
        position = json.loads(json.dumps(position))
        assert list(read_file(path, position)) == found[index:]


@settings(deadline=None, max_examples=60)
@given(
    content=st.text(st.sampled_from("ab\r\n\ufeff\0é<"), max_size=40),
    separators=st.lists(st.integers(0, 40), max_size=3),
)
def test_lines_are_those_of_python(tmp_path_factory, content, separators):
    """With any mixture of line ends, as `open` in text mode reads them."""
    path = tmp_path_factory.mktemp("data") / "a.txt"
    for index in separators:
        content = content[:index] + "\n<|endoftext|>\r" + content[index:]
    path.write_bytes(content.encode())
    with open(path, encoding="utf-8-sig") as file:
        expected = [part.strip("\n") for part in joined(file)]
    found = list(read_file(path))
    assert [text for _, text in found] == [part for part in expected if part.strip()]
    for index, (position, _) in enumerate(found):
        assert list(read_file(path, position)) == found[index:]


def joined(lines):
    parts = [""]
    for line in lines:
        if line.strip() == "<|endoftext|>":
            parts.append("")
        else:
            parts[-1] += line
    return parts


def test_a_source_of_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(file_formats, "LONGEST", 20)
    for name in ("1.jsonl", "2.txt.gz", "3.parquet"):
        write(tmp_path / name)
    (source,) = parse_sources([str(tmp_path)], "data")
    found = list(read_source(source, "data"))
    long = ["x" * 20, "x" * 20, "x" * 10]
    expected = [part for text in TEXTS for part in (long if text == "x" * 50 else [text])]
    assert [text for _, text in found] == 3 * expected
    for index, (position, _) in enumerate(found):
        position = json.loads(json.dumps(position))
        assert list(read_source(source, "data", position=position)) == found[index:]


def test_long_documents_are_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(file_formats, "LONGEST", 10)
    assert cut("abc\ndefg\nhijklmnopqrstuv\nw") == ["abc\ndefg\n", "hijklmnopq", "rstuv\nw"]
    assert cut("") == [""]
    (tmp_path / "a.txt").write_text("abc\ndefg\nhi\nj\n<|endoftext|>\nk")
    assert list(read_documents(str(tmp_path / "a.txt"), "data")) == ["abc\ndefg", "hi\nj", "k"]


@settings(deadline=None, max_examples=80)
@given(values=st.lists(st.text(max_size=9), max_size=6), block=st.integers(1, 40))
def test_json_arrays_are_read_in_blocks(tmp_path_factory, values, block):
    path = tmp_path_factory.mktemp("data") / "a.json"
    path.write_text(json.dumps([{"text": v, "n": [1.5, -12]} for v in values], indent=2))
    before, file_formats._BLOCK = file_formats._BLOCK, block
    try:
        assert [text for _, text in read_file(path)] == values
    finally:
        file_formats._BLOCK = before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('[{"text": "a"} {"text": "b"}]', r"entry 1: '\]' is missing"),
        ('[{"text": "a"},]', "entry 2: Expecting value"),
        ('[{"text": "a"}', r"entry 1: '\]' is missing"),
        ('[{"text": "a"}, {"text', "entry 2: "),
        ('[{"text": "a"}] x', "more after the end of the array"),
        ("[", "entry 1: Expecting value"),
    ],
)
def test_damaged_json_arrays(tmp_path, content, complaint):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"a\.json: not valid JSON: .*{complaint}"):
        list(read_file(path))
    path.write_text("[ ]\n")
    assert list(read_file(path)) == []


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_damaged_compressed_files_are_bad_input_or_text(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("data") / data.draw(st.sampled_from(["a.jsonl.gz", "a.txt.zst"]))
    write(path)
    content = bytearray(path.read_bytes())
    for offset in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[offset] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        texts = list(read_documents(str(path), "data"))
    except InputError as error:
        message = str(error)
    else:
        assert all(isinstance(text, str) for text in texts)
        return
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_cut_off_is_not_read_silently(tmp_path, name):
    path = tmp_path / name
    write(path, [f"document {number}" for number in range(500)])
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=rf"{name}: cannot be read"):
            list(read_documents(str(path), "data"))


def test_files_of_several_compressed_parts(tmp_path):
    for name in ("a.txt.gz", "b.txt.zst"):
        path = tmp_path / name
        write_content(path, b"one\n")
        path.write_bytes(2 * path.read_bytes())
        assert list(read_documents(str(path), "data")) == ["one\none"]
