"""Datasets on the hub: shuffled in blocks, and read again from any position."""

import json
import sys
from types import SimpleNamespace

import pytest

from hybridize.data import hub_text
from hybridize.data.documents import read_source
from hybridize.data.sources import parse_sources
from hybridize.data.text_key import find_revisions, text_key
from hybridize.errors import HybridizeError, InputError

datasets = pytest.importorskip("datasets")


def rows(shards):
    for shard in shards:
        for number in range(50):
            yield {"text": f"{shard}-{number}"}


@pytest.fixture
def calls(monkeypatch):
    """Replace the hub; return the calls."""
    calls = []

    def load(name, *configuration, **options):
        calls.append((name, configuration, options))
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_text, "_SHUFFLED_ROWS", 16)
    return calls


def read(position=None, seed=None, **options):
    (source,) = parse_sources(["someone/text:raw:train"], "data")
    return list(read_source(source, "data", position=position, seed=seed, **options))


@pytest.mark.parametrize("seed", [None, 3])
def test_a_stream_goes_on_at_any_document(calls, seed):
    found = read(seed=seed)
    assert sorted(text for _, text in found) == sorted(row["text"] for row in rows(range(3)))
    for index in (0, 1, 15, 16, 40, 49, 50, 77, 149):
        again = read(json.loads(json.dumps(found[index][0])), seed)
        assert [text for _, text in again] == [text for _, text in found[index:]]
        middle = len(again) // 2  # interrupted a second time
        last = read(json.loads(json.dumps(again[middle][0])), seed)
        assert [text for _, text in last] == [text for _, text in again[middle:]]


def test_the_seed_determines_the_order(calls):
    first, again, other = ([text for _, text in read(seed=seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[:50] != [f"0-{number}" for number in range(50)]
    assert [text for _, text in read()] == [row["text"] for row in rows(range(3))]


def test_the_commit_is_read(calls):
    read(revision="abc")
    options = {"split": "train", "streaming": True, "revision": "abc"}
    assert calls == [("someone/text", ("raw",), options)]


def test_the_key_covers_the_commit(tmp_path, monkeypatch):
    sources = parse_sources(["someone/text:raw:train"], "data")
    keys = set()
    for commit in ("abc", "def"):
        hub = SimpleNamespace(dataset_info=lambda name, **_: SimpleNamespace(sha=name + commit))  # noqa: B023
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        revisions = find_revisions(sources)
        assert revisions == ["someone/text" + commit]
        keys.add(text_key(sources, revisions, tmp_path, {}))
    assert len(keys) == 2
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(dataset_info=None))
    assert find_revisions(sources) == [None]


def test_an_error_names_the_row(monkeypatch):
    def wrong(shards):
        for shard in shards:
            yield {"text": "fine"}
            yield {"text": shard}

    stream = datasets.IterableDataset.from_generator(wrong, gen_kwargs={"shards": [0, 1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    with pytest.raises(InputError, match=r"part 1, row 2: 'text' is missing or not a string"):
        read()


def test_a_stream_that_breaks_off_is_a_failed_run(monkeypatch):
    def breaks_off(shards):
        yield {"text": "fine"}
        raise ConnectionError("no route\nto anywhere")

    stream = datasets.IterableDataset.from_generator(breaks_off, gen_kwargs={"shards": [0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    with pytest.raises(HybridizeError, match="stopped sending the dataset: no route;") as caught:
        read()
    assert caught.value.exit_code == 1
