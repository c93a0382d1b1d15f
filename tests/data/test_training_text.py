"""The text of a training run: files on disk, validation, mixing, and killed runs."""

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridize.data import token_shards
from hybridize.data.load_text import load_training_text
from hybridize.data.mixing import Mixture, TokenSource
from hybridize.data.token_shards import Index, ShardWriter
from hybridize.errors import InputError
from tiny import LETTERS, write_stock, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "in"
    write_stock(directory, "llama", num_hidden_layers=1, max_position_embeddings=48)
    write_tokenizer(directory)
    return directory


def write_lines(path, letters, count, seed=0):
    """Write documents of some letters in JSON lines."""
    rng = random.Random(seed)
    lines = ["".join(rng.choices(letters, k=rng.randint(4, 40))) for _ in range(count)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    half = len(LETTERS) // 2
    return [
        write_lines(directory / "a.jsonl", LETTERS[:half], 200),
        write_lines(directory / "b.jsonl", LETTERS[half:], 200),
    ]


def load(sources, model, directory, **options):
    arguments = {"length": 16, "tokens": 64 * 16, "held_out": 8} | options
    return load_training_text(
        sources,
        model=model,
        cache=directory / "cache",
        record=directory / "text.key",
        **arguments,
    )


def test_both_parts_have_the_shares(model, sources, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    first = set(tokenizer(LETTERS[: len(LETTERS) // 2], add_special_tokens=False).input_ids)
    second = set(tokenizer(LETTERS[len(LETTERS) // 2 :], add_special_tokens=False).input_ids)
    given = [f"{sources[0]}:3", f"{sources[1]}:1"]
    training, validation = load(given, model, tmp_path)
    assert (len(training), len(validation)) == (56, 8)
    for part, expected in ((validation, 6), (training, 42), (training.first(28 * 16), 21)):
        rows = [set(row) & (first | second) for row in part.ids.tolist()]
        assert all(row <= first or row <= second for row in rows)
        assert abs(sum(row <= first for row in rows) - expected) <= 1


def test_the_text_is_found_again(model, sources, tmp_path, monkeypatch):
    first = load(sources, model, tmp_path)
    monkeypatch.setattr("hybridize.data.load_text.Mixture", None)  # must not be called
    again = load(sources, model, tmp_path)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.seq_idx, other.seq_idx)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    "change", [{"held_out": 4}, {"seed": 1}, {"length": 8}, {"tokens": 1000}, {"weights": (1, 2)}]
)
def test_everything_that_changes_the_text_changes_its_directory(model, sources, tmp_path, change):
    load([f"{source}:1" for source in sources], model, tmp_path)
    weights = change.pop("weights", (1, 1))
    (tmp_path / "text.key").unlink()
    given = [f"{source}:{weight}" for source, weight in zip(sources, weights, strict=True)]
    load(given, model, tmp_path, **change)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_run_that_goes_on_has_its_text_or_an_error(model, tmp_path):
    source = Path(write_lines(tmp_path / "a.jsonl", LETTERS, 200))
    before, _ = load([str(source)], model, tmp_path)
    source.write_text(source.read_text() + '\n{"text": "more"}')
    again, _ = load([str(source)], model, tmp_path)  # it is packed already
    assert torch.equal(before.ids, again.ids)
    (path,) = (tmp_path / "cache").glob("*/index.json")
    path.unlink()
    with pytest.raises(InputError, match="has changed since the interrupted run began"):
        load([str(source)], model, tmp_path)
    (tmp_path / "text.key").write_bytes(b"\xff../..")
    with pytest.raises(InputError, match=r"text\.key: is damaged; `force=True` starts"):
        load([str(source)], model, tmp_path)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("source", ["files", "teacher"])
def test_a_killed_read_goes_on_where_it_was(model, sources, tmp_path, monkeypatch, source):
    given = sources if source == "files" else ["teacher"]
    monkeypatch.setattr(token_shards, "_SEQUENCES_PER_SHARD", 10)
    monkeypatch.setattr("hybridize.data.teacher_samples._MAX_ROWS", 8)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    expected = load(given, model, tmp_path / "whole")
    save, saved = token_shards.save_checked, []

    def die_later(path, tensors, about):
        if len(saved) % 3 == 2:
            saved.append("killed")
            raise KilledError
        save(path, tensors, about)
        saved.append(path.name)

    monkeypatch.setattr(token_shards, "save_checked", die_later)
    for _ in range(10):
        try:
            found = load(given, model, tmp_path / "cut")
            break
        except KilledError:
            pass
    names = [name for name in saved if name != "killed"]
    assert saved.count("killed") >= 2
    assert len(names) == len(set(names)) == 7  # no shard was written twice
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.seq_idx, other.seq_idx)


def test_teacher_samples_for_both_parts(model, tmp_path):
    training, validation = load(["teacher"], model, tmp_path)
    assert (len(training), len(validation)) == (56, 8)


def test_too_little_text_is_named(model, tmp_path):
    source = write_lines(tmp_path / "a.jsonl", LETTERS, 3)
    for options, complaint in (
        ({"held_out": 2, "tokens": 32}, "has 2 sequences of 16 tokens, and 2 are held out"),
        ({"held_out": 60, "tokens": 16_000}, "sequences of 16 tokens, and 60 are held out"),
        ({"length": 4000, "tokens": 40_000, "held_out": 1}, "less text than one sequence"),
    ):
        with pytest.raises(InputError, match=complaint):
            load([source], model, tmp_path, **options)
        (tmp_path / "text.key").unlink(missing_ok=True)


def pack_random(directory, tokens):
    """Pack random documents of 200 tokens; return the peak of the memory, in bytes."""

    def read(position):
        rng = np.random.default_rng(0)
        for index in range(tokens // 200):
            yield [index], rng.integers(0, 1000, 200, dtype=np.int32)

    directory.mkdir()
    tracemalloc.start()
    mixture = Mixture([TokenSource("a", None, read)], 128, 0)
    writer = ShardWriter(directory, Index("key", 128, 1000))
    for sequence in mixture:
        if writer.add(sequence):
            writer.write("training", mixture.state())
    writer.write("training", None, complete=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(token_shards, "_TOKENS_PER_SHARD", 1 << 14)
    peaks = []
    for tokens in (50_000, 50_000, 200_000):  # the first one imports what it needs
        directory = tmp_path / str(len(peaks))
        peaks.append(pack_random(directory, tokens))
        size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        assert size < 2.4 * tokens
    # 150,000 more tokens take 300 kB as uint16.
    assert peaks[2] < peaks[1] + 50_000
