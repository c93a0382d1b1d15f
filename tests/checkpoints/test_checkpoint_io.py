"""The reader and the writer against the safetensors library and transformers."""

import hashlib
import importlib.metadata
import json
import math
import os
import threading
import time
from datetime import datetime, timedelta

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from disk import DTYPES, raw, snapshot, specs_of, write_checkpoint
from hybridize.checkpoints import (
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    read_provenance,
)
from hybridize.checkpoints.dtypes import dtype_name
from hybridize.errors import InputError
from tiny import tokens, write_stock


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    """Random bits in every dtype and odd shapes, strided views, and names that are not ASCII."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for code, dtype in DTYPES.items():
        for shape in [(), (0,), (3,), (2, 0, 5), (4, 5)]:
            count = math.prod(shape) * dtype.itemsize
            bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
            bits = bits & 1 if dtype == torch.bool else bits
            tensors[f"{code}.{'x'.join(map(str, shape))}"] = bits.view(dtype).reshape(shape)
    grid = torch.arange(24.0).reshape(4, 6)
    tensors |= {"transposed": grid.T, "stepped": grid[::2, 1::3], "broadcast": grid[0].expand(3, 6)}
    tensors |= {"größe.重み.✓": grid.clone(), 'quoted " \\ \n': grid.clone(), "": grid.clone()}
    return tensors


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    return (got.dtype, got.shape, raw(got)) == (want.dtype, want.shape, raw(want))


@pytest.mark.parametrize("limit", [1 << 30, 100, 1], ids=["one file", "shards", "a tensor each"])
def test_safetensors_reads_what_the_writer_writes(tmp_path, limit):
    want = tensors_of_every_dtype()
    write_checkpoint(tmp_path / "out", want, max_shard_size=limit)
    got = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}  # without it transformers refuses
        got |= load_file(file)
    assert got.keys() == want.keys()
    assert [name for name in want if not same(got[name], want[name])] == []


def test_the_reader_reads_what_safetensors_writes(tmp_path):
    want = {name: tensor.contiguous() for name, tensor in tensors_of_every_dtype().items()}
    save_file(want, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "test"}')
    with CheckpointReader(tmp_path, allow_nonfinite=True) as reader:
        assert set(reader.names) == set(want)
        assert [name for name in want if not same(reader.get(name), want[name])] == []
        for name, tensor in want.items():
            facts = (reader.shape(name), reader.dtype(name), reader.nbytes(name))
            assert facts == (tuple(tensor.shape), dtype_name(tensor.dtype), tensor.nbytes)


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_partial_writes_are_continued(tmp_path, monkeypatch, few, most):
    """The operating system may write fewer bytes than requested."""
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:most]))
        write_checkpoint(tmp_path / "out", few)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(same(got[name], few[name]) for name in few)
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["files"]
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert record["model.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("limit", [1, 2048, 20_000, 1 << 30])
def test_transformers_opens_written_shards(tmp_path, limit):
    model = write_stock(tmp_path / "in", "llama")
    want = dict(model.state_dict())
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    write_checkpoint(tmp_path / "out", want, config=config, max_shard_size=limit)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    shards = {file.name: load_file(file) for file in files}
    for shard in shards.values():
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= limit
    index = tmp_path / "out" / "model.safetensors.index.json"
    if limit == 1 << 30:
        assert list(shards) == ["model.safetensors"]
        assert not index.exists()
    else:
        count = len(files)
        assert list(shards) == [
            f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
        ]
        record = json.loads(index.read_text())
        assert record["metadata"]["total_size"] == sum(tensor.nbytes for tensor in want.values())
        assert record["weight_map"] == {name: file for file in shards for name in shards[file]}
        assert list(record["weight_map"]) == list(want)
    ids = tokens()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, model(ids).logits)


def test_shards_that_transformers_wrote_are_read(tmp_path):
    want = write_stock(tmp_path, "llama", shard="20KB").state_dict()
    with CheckpointReader(tmp_path) as reader:
        assert len(reader.files) > 2
        assert set(reader.names) == set(want)
        # Alternate between files, so that they are closed and opened again.
        assert all(same(reader.get(name), want[name]) for name in reversed(reader.names))


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        ([("b", "b")], "expected .*'a'.*got .*'b'"),
        ([("a", "b")], r"got .*\(5,\)"),
        ([("a", "half")], "got .*float16"),
        ([("a", "a"), ("a", "a")], "expected .*'b'.*got .*'a'"),
        ([("a", "a"), ("b", "b"), ("c", "c"), ("c", "c")], "expected None"),
        ([], "'a'.* was never added"),
        ([("a", "a"), ("b", "b")], "'c'.* was never added"),
    ],
    ids=["order", "shape", "dtype", "twice", "too many", "none", "too few"],
)
def test_wrong_calls_to_the_writer_are_refused(tmp_path, few, calls, complaint):
    writer = CheckpointWriter(tmp_path / "out", specs_of(few), config={}, max_shard_size=60)
    tensors = few | {"half": few["a"].half()}

    def misuse() -> None:
        with writer:
            for name, tensor in calls:
                writer.add(name, tensors[tensor])
            writer.finish({})

    with pytest.raises(RuntimeError, match=complaint):
        misuse()
    assert snapshot(tmp_path) == {}


COPIED = {
    "tokenizer.json": b'{"a": "\xc3\xa4"}',
    "tokenizer_config.json": b"{}",
    "tokenizer.model": bytes(range(256)),
    "vocab.txt": b"a\r\nb\n",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "generation_config.json": b'{"eos_token_id": 2}',
    "LICENSE.txt": b"free",
}
NOT_COPIED = {
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "optimizer.pt": b"pickle",
    "README.md": b"about another model",
    "other.safetensors": b"weights",
}


def test_neither_code_nor_weights_are_copied(tmp_path, few):
    source = tmp_path / "in"
    write_checkpoint(source, few)
    for name, content in (COPIED | NOT_COPIED).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    (source / "vocab.txt").rename(tmp_path / "blob")
    (source / "vocab.txt").symlink_to("../blob")  # as in the hub's cache
    before = snapshot(source)
    write_checkpoint(
        tmp_path / "out", few, source=source, extra_files={"own.py": "x = 'ü'\n"}, config={"a": 1}
    )
    assert snapshot(source) == before
    made = {"config.json", "model.safetensors", "hybridize.json", "own.py"}
    files = {name for name, kind in snapshot(tmp_path / "out").items() if kind != "directory"}
    assert files == made | set(COPIED)
    for name, content in COPIED.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert (tmp_path / "out" / "own.py").read_text("utf-8") == "x = 'ü'\n"
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"a": 1}
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["files"]
    assert record == {
        name: {
            "sha256": hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest(),
            "bytes": (tmp_path / "out" / name).stat().st_size,
        }
        for name in files - {"hybridize.json"}
    }


def test_provenance_has_one_record_per_command(tmp_path, few):
    source = None
    for command in ("one", "two", "three"):
        write_checkpoint(tmp_path / command, few, source=source, command=command)
        source = tmp_path / command
    records = read_provenance(source)
    assert [record["command"] for record in records] == ["one", "two", "three"]
    assert records[:2] == read_provenance(tmp_path / "two")
    for record in records:
        assert record["versions"]["torch"] == importlib.metadata.version("torch")
        created = datetime.fromisoformat(record["created"])
        assert created.utcoffset() == timedelta(0)
        assert abs(datetime.now(created.tzinfo) - created) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        '{"format_version": 2, "steps": []}',
        '{"format_version": 1, "steps": {}}',
        '{"format_version": 1, "steps": [7]}',
        '{"format_version": 1, "steps": [{"command": "x", "created": "y", "source": {}}]}',
    ],
)
def test_unreadable_provenance_stops_a_run_at_its_start(tmp_path, few, record):
    write_checkpoint(tmp_path / "in", few)
    (tmp_path / "in" / "hybridize.json").write_text(record)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"in/hybridize\.json: "):
        write_checkpoint(tmp_path / "out", few, source=tmp_path / "in")
    assert snapshot(tmp_path) == before


def test_special_floats_are_spelled_as_transformers_spells_them(tmp_path, few):
    """JSON has no infinity, but older Nemotron-H and Mamba-2 checkpoints need it in config.json."""
    config = {"limit": [0.0, math.inf], "deep": {"low": -math.inf}, "plain": 1.5}
    write_checkpoint(tmp_path / "out", few, config=config)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "limit": [0.0, {"__float__": "Infinity"}],
        "deep": {"low": {"__float__": "-Infinity"}},
        "plain": 1.5,
    }


@pytest.mark.parametrize("ahead", [False, True])
def test_hashes_equal_those_of_hashlib(tmp_path, ahead):
    tensors = {name: torch.rand(300_000) for name in "abc"}  # more than a chunk each
    write_checkpoint(tmp_path / "x", tensors, max_shard_size=1)
    with CheckpointReader(tmp_path / "x") as reader:
        if ahead:
            reader.hash_in_background()
        hashes = reader.sha256()
    assert hashes == {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in (tmp_path / "x").glob("*.safetensors")
    }
    assert len(hashes) == 3


def test_hashing_stops_when_the_reader_closes(tmp_path):
    """Otherwise an interrupted conversion would hash the whole source before it ends."""
    size = 1 << 34
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole, slow to hash
    (tmp_path / "config.json").write_text("{}")

    def hashing() -> bool:
        return any(thread.name.startswith("sha256") for thread in threading.enumerate())

    with CheckpointReader(tmp_path) as reader:
        reader.hash_in_background()
        assert hashing()
    deadline = time.monotonic() + 2
    while hashing() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not hashing()


def test_parts_are_stacked_by_rows(tmp_path):
    parts = [torch.randn(3, 5), torch.randn(5, 2).T, torch.randn(1, 5)]
    specs = [TensorSpec("stacked", (6, 5), "float32")]
    with CheckpointWriter(tmp_path / "out", specs, config={}, max_shard_size=10**6) as writer:
        for wrong in ([parts[0]], [*parts, parts[0].double()], [parts[0], torch.randn(3, 4)]):
            with pytest.raises(RuntimeError, match="expected"):
                writer.add("stacked", *wrong)
        writer.add("stacked", *parts)
        writer.finish({"command": "test", "source": {"name": "test"}})
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["stacked"], torch.cat(parts)
    )
