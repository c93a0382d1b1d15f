"""What the option `data` may name: files, directories, patterns, datasets, weights."""

import pytest

from hybridize.data.sources import parse_sources
from hybridize.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a few files."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "a.jsonl", "b:2.txt", "c.txt:0.5", "d.json.gz", "e.TXT.ZST", "corpus/two.jsonl",
        "corpus/one.md", "corpus/deep/er/three.parquet", "corpus/notes.pdf", "corpus/.hidden.txt",
        "corpus/.git/x.txt", "corpus/table.parquet.gz",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "c.txt:0.5").rename(tmp_path / "0.7:0.5")
    return tmp_path


def parsed(*given):
    return [
        (s.name, s.weight, [str(path) for path in s.files]) for s in parse_sources(given, "data")
    ]


@pytest.mark.parametrize(
    ("given", "name", "weight", "files"),
    [
        ("teacher", "teacher", None, []),
        ("a.jsonl", "a.jsonl", None, ["a.jsonl"]),
        ("a.jsonl:1", "a.jsonl", 1.0, ["a.jsonl"]),
        ("a.jsonl:.25", "a.jsonl", 0.25, ["a.jsonl"]),
        ("b:2.txt", "b:2.txt", None, ["b:2.txt"]),
        ("b:2.txt:3.", "b:2.txt", 3.0, ["b:2.txt"]),
        ("d.json.gz", "d.json.gz", None, ["d.json.gz"]),
        ("e.TXT.ZST:2", "e.TXT.ZST", 2.0, ["e.TXT.ZST"]),
        ("*.jsonl", "*.jsonl", None, ["a.jsonl"]),
        ("corpus/*.jsonl:0.5", "corpus/*.jsonl", 0.5, ["corpus/two.jsonl"]),
        ("corpus/[ot]*", "corpus/[ot]*", None, ["corpus/one.md", "corpus/two.jsonl"]),
        ("**/*.parquet", "**/*.parquet", None, ["corpus/deep/er/three.parquet"]),
        ("someone/text", "someone/text", None, []),
        ("someone/text:train", "someone/text:train", None, []),
        ("someone/text:raw:train:2", "someone/text:raw:train", 2.0, []),
        ("someone/text:train[:100]", "someone/text:train[:100]", None, []),
        ("someone/text:2024:1", "someone/text:2024", 1.0, []),
        ("someone/text:v1.0:train", "someone/text:v1.0:train", None, []),
    ],
)
def test_one_source(given, name, weight, files):
    assert parsed(given) == [(name, weight, files)]


def test_all_text_files_below_a_directory(capsys):
    expected = ["corpus/one.md", "corpus/two.jsonl", "corpus/deep/er/three.parquet"]
    assert parsed("corpus:2") == [("corpus", 2.0, expected)]
    note = "`data=corpus:2`: 1 .jsonl, 1 .md, 1 .parquet files; 2 other files are left out"
    assert note in capsys.readouterr().err


def test_a_directory_may_link_to_itself(folder):
    (folder / "corpus" / "loop").symlink_to(folder / "corpus")
    assert len(parsed("corpus")[0][2]) == 3


def test_several_sources():
    assert [s[:2] for s in parsed("a.jsonl:0.7", "someone/text:0.3")] == [
        ("a.jsonl", 0.7),
        ("someone/text", 0.3),
    ]
    assert [s[1] for s in parsed("a.jsonl", "someone/text:train")] == [None, None]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["a.jsonl:0.7", "b:2.txt"], "`data=b:2.txt`: has no weight, but a.jsonl:0.7 has one"),
        (["a.jsonl:0"], "0 is not a weight; give a number above 0"),
        (["a.jsonl:0.000"], "0.000 is not a weight"),
        (["a.jsonl:-1"], "-1 is not a weight"),
        (["a.jsonl:nan"], "nan is not a weight"),
        (["a.jsonl:inf"], "inf is not a weight"),
        (["a.jsonl:1e3"], "1e3 is not a weight"),
        (["a.jsonl:50%"], "50% is not a weight"),
        (["a.jsonl:0,7"], "0,7 is not a weight"),
        (["a.jsonl:" + "9" * 400], "give a weight from 1e-06 to 1e\\+06"),
        (["a.jsonl:0.0000001"], "give a weight from 1e-06"),
        (["a.jsonl:half"], "half is not a weight"),
        (["a.jsonl:"], "is not a weight"),
        (["missing.txt:0.5"], "`data=missing.txt:0.5`: no such file"),
        (["missing.txt.gz"], "no such file"),
        (["corpus/*.csv"], "no file matches"),
        (["corpus/*.pdf"], "contains no file that ends in"),
        (["corpus/notes.pdf"], "a file must end in"),
        (["corpus/table.parquet.gz"], "a file must end in"),
        (["someone/text:2024"], "write someone/text, or someone/text:2024:1 if 2024 is a split"),
        (["teacher:0.5"], "teacher takes no weight"),
        (["teacher:0.5", "a.jsonl:0.5"], "cannot be combined with other sources"),
        (["a.jsonl", "teacher"], "cannot be combined with other sources"),
    ],
)
def test_bad_sources(given, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_sources(given, "data")
